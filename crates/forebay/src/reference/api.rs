//! The page of the API, from its OpenAPI document.

use serde_json::{Map, Value};

use super::{cell, table};

const HEAD: &str = "\
# API

JSON over HTTP/1.1 on the daemon's socket, `/run/forebay/forebay.sock`; those that only look are on
`daemon.http`, too, where that is configured. The OpenAPI document that this page is made of is at
`/openapi.json`, in the package, and in `dist/openapi.json`. The crate `forebay-api` has these types
and a client for Rust.

```text
curl --unix-socket /run/forebay/forebay.sock http://localhost/v1/status
```

Fields may be added within version 1. Whatever is refused is answered with a [`Problem`](#problem).

";

pub(super) fn page(document: &Value) -> String {
    let mut page = HEAD.to_owned();
    for (path, methods) in members(&document["paths"]) {
        for (method, operation) in methods.as_object().into_iter().flatten() {
            operation_of(method, path, operation, &mut page);
        }
    }
    page += "# Types\n\n";
    for (name, schema) in members(&document["components"]["schemas"]) {
        type_of(name, schema, &mut page);
    }
    page
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn operation_of(method: &str, path: &str, operation: &Value, page: &mut String) {
    let method = method.to_ascii_uppercase();
    *page += &format!(
        "## `{method} {path}`\n\n{}.\n\n",
        text(&operation["summary"])
    );
    if let Some(who) = operation["description"].as_str() {
        *page += &format!("{who}\n\n");
    }
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    let rows: Vec<_> = parameters
        .map(|parameter| {
            [
                format!("`{}`", text(&parameter["name"])),
                text(&parameter["in"]),
                shape(&parameter["schema"]),
                cell(&text(&parameter["description"])),
            ]
        })
        .collect();
    if !rows.is_empty() {
        *page += &table(["Parameter", "In", "Type", "Meaning"], &rows);
    }
    for (what, content) in [
        ("Body", &operation["requestBody"]["content"]),
        ("Answer", &operation["responses"]["200"]["content"]),
    ] {
        for (content, schema) in members(content) {
            *page += &format!("{what}: {}, `{content}`.\n\n", shape(&schema["schema"]));
        }
    }
}

fn type_of(name: &str, schema: &Value, page: &mut String) {
    *page += &format!("## {name}\n\n{}\n\n", cell(&text(&schema["description"])));
    let required = schema["required"].as_array();
    let is_required = |name: &str| required.is_some_and(|all| all.iter().any(|r| r == name));
    let rows: Vec<_> = members(&schema["properties"])
        .map(|(field, schema)| {
            [
                format!("`{field}`"),
                shape(schema),
                if is_required(field) { "yes" } else { "no" }.to_owned(),
                cell(&text(&schema["description"])),
            ]
        })
        .collect();
    if !rows.is_empty() {
        *page += &table(["Field", "Type", "Always there", "Meaning"], &rows);
    }
    let words: Vec<_> = words(schema)
        .map(|(word, meaning)| [word, cell(&meaning)])
        .collect();
    if !words.is_empty() {
        *page += &table(["Value", "Meaning"], &words);
    }
}

/// The words of an enumeration, with what is said of each.
fn words(schema: &Value) -> impl Iterator<Item = (String, String)> {
    let one_of = schema["oneOf"].as_array().into_iter().flatten();
    let plain = schema["enum"].as_array().into_iter().flatten();
    let said = one_of.map(|word| {
        let value = word.get("const");
        let word_or_shape = value.map_or_else(|| shape(word), |value| format!("`{value}`"));
        (word_or_shape, text(&word["description"]))
    });
    said.chain(plain.map(|value| (format!("`{value}`"), String::new())))
}

/// The type that a schema describes, in a few words.
fn shape(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or_default();
        return format!("[{name}](#{})", name.to_ascii_lowercase());
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        if let Some(any) = schema[key].as_array() {
            let any: Vec<_> = any.iter().map(shape).collect();
            return any.join(" or ");
        }
    }
    if let Some(value) = schema.get("const") {
        return format!("`{value}`");
    }
    if let Some(words) = schema["enum"].as_array() {
        let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
        return words.join(", ");
    }
    match &schema["type"] {
        Value::String(name) => typed(name, schema),
        Value::Array(names) => {
            let names: Vec<_> = names
                .iter()
                .filter_map(|name| Some(typed(name.as_str()?, schema)))
                .collect();
            names.join(" or ")
        }
        _ => "anything".to_owned(),
    }
}

fn typed(name: &str, schema: &Value) -> String {
    match name {
        "array" => match schema["prefixItems"].as_array() {
            Some(items) => {
                let items: Vec<_> = items.iter().map(shape).collect();
                format!("list of {}", items.join(", "))
            }
            None => format!("list of {}", shape(&schema["items"])),
        },
        "object" => match schema.get("additionalProperties") {
            Some(Value::Object(_)) => {
                format!("{} by name", shape(&schema["additionalProperties"]))
            }
            _ => inline(schema["properties"].as_object()),
        },
        "integer" => bounded("integer", schema),
        "number" => bounded("number", schema),
        other => other.to_owned(),
    }
}

/// An object that has no name of its own.
fn inline(properties: Option<&Map<String, Value>>) -> String {
    let fields: Vec<_> = properties
        .into_iter()
        .flatten()
        .map(|(name, schema)| format!("`{name}`: {}", shape(schema)))
        .collect();
    match fields.is_empty() {
        true => "object".to_owned(),
        false => format!("object with {}", fields.join(", ")),
    }
}

fn bounded(name: &str, schema: &Value) -> String {
    match (schema.get("minimum"), schema.get("maximum")) {
        (Some(min), Some(max)) => format!("{name}, {min} to {max}"),
        (Some(min), None) => format!("{name}, at least {min}"),
        (None, Some(max)) => format!("{name}, at most {max}"),
        (None, None) => name.to_owned(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
