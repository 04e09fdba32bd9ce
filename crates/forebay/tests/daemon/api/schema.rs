//! As much of JSON Schema as the document has.

use serde_json::{Map, Value};

/// What is understood below, and what says nothing about a value.
const UNDERSTOOD: [&str; 16] = [
    "$ref",
    "additionalProperties",
    "anyOf",
    "allOf",
    "const",
    "enum",
    "items",
    "maxItems",
    "maximum",
    "minItems",
    "minimum",
    "oneOf",
    "prefixItems",
    "properties",
    "required",
    "type",
];
const SAYS_NOTHING: [&str; 4] = ["default", "description", "format", "title"];

/// The schemas of a document.
pub(super) struct Schemas<'a> {
    all: &'a Map<String, Value>,
    pub(super) problem: Value,
}

impl<'a> Schemas<'a> {
    pub(super) fn new(document: &'a Value) -> Self {
        Self {
            all: document["components"]["schemas"].as_object().unwrap(),
            problem: serde_json::json!({ "$ref": "#/components/schemas/Problem" }),
        }
    }

    /// Keywords in the document that [`check`](Self::check) does not know.
    pub(super) fn unknown(&self) -> Vec<String> {
        fn look(schema: &Value, found: &mut Vec<String>) {
            for (key, value) in schema.as_object().into_iter().flatten() {
                match key.as_str() {
                    "properties" => value
                        .as_object()
                        .unwrap()
                        .values()
                        .for_each(|s| look(s, found)),
                    "items" | "additionalProperties" => look(value, found),
                    "anyOf" | "oneOf" | "allOf" | "prefixItems" => {
                        value
                            .as_array()
                            .unwrap()
                            .iter()
                            .for_each(|s| look(s, found));
                    }
                    key if UNDERSTOOD.contains(&key) || SAYS_NOTHING.contains(&key) => {}
                    key => found.push(key.to_owned()),
                }
            }
        }
        let mut found = Vec::new();
        self.all
            .values()
            .for_each(|schema| look(schema, &mut found));
        found
    }

    /// The schema itself, in place of a reference to it.
    pub(super) fn resolve<'s>(&'s self, schema: &'s Value) -> &'s Value {
        let name = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next());
        name.map_or(schema, |name| self.resolve(&self.all[name]))
    }

    /// Whether a value is as a schema says; where it is not, and why.
    pub(super) fn check(&self, value: &Value, schema: &Value) -> Result<(), String> {
        let schema = self.resolve(schema);
        let failed = |why: String| Err(format!("{why}, by {schema}"));
        if let Some(constant) = schema.get("const").filter(|constant| *constant != value) {
            return failed(format!("{value} is not {constant}"));
        }
        if schema["enum"]
            .as_array()
            .is_some_and(|all| !all.contains(value))
        {
            return failed(format!("{value} is none of them"));
        }
        let fits = |schemas: &Value| {
            let schemas = schemas.as_array().unwrap();
            schemas
                .iter()
                .filter(|one| self.check(value, one).is_ok())
                .count()
        };
        if schema.get("anyOf").is_some_and(|any| fits(any) == 0)
            || schema.get("oneOf").is_some_and(|one| fits(one) != 1)
        {
            return failed(format!("{value} fits none, or more than one of oneOf"));
        }
        for one in schema["allOf"].as_array().into_iter().flatten() {
            self.check(value, one)?;
        }
        let types = match &schema["type"] {
            Value::String(name) => vec![name.as_str()],
            Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if !types.is_empty() && !types.iter().any(|name| is_of(value, name)) {
            return failed(format!("{value} is not of that type"));
        }
        match value {
            Value::Object(object) => self.check_object(object, schema),
            Value::Array(items) => self.check_array(items, schema),
            Value::Number(number) => check_number(number.as_f64().unwrap(), schema),
            _ => Ok(()),
        }
    }

    fn check_object(&self, object: &Map<String, Value>, schema: &Value) -> Result<(), String> {
        let required = schema["required"].as_array().into_iter().flatten();
        for name in required.filter_map(Value::as_str) {
            if !object.contains_key(name) {
                return Err(format!("it lacks `{name}`"));
            }
        }
        for (name, value) in object {
            let own = schema["properties"].get(name);
            let own = own.or_else(|| schema.get("additionalProperties"));
            match own {
                Some(Value::Bool(true)) => {}
                Some(Value::Bool(false)) => return Err(format!("`{name}` may not be there")),
                Some(own) => self
                    .check(value, own)
                    .map_err(|why| format!("{name}: {why}"))?,
                // What the document does not name is not documented.
                None if schema.get("properties").is_some() => {
                    return Err(format!("`{name}` is not in the document"));
                }
                None => {}
            }
        }
        Ok(())
    }

    fn check_array(&self, items: &[Value], schema: &Value) -> Result<(), String> {
        let count = |key: &str| schema[key].as_u64().and_then(|n| usize::try_from(n).ok());
        if count("minItems").is_some_and(|min| items.len() < min)
            || count("maxItems").is_some_and(|max| items.len() > max)
        {
            return Err(format!("there are {} items, by {schema}", items.len()));
        }
        for (i, item) in items.iter().enumerate() {
            let own = schema["prefixItems"].get(i).or_else(|| schema.get("items"));
            if let Some(own) = own {
                self.check(item, own)
                    .map_err(|why| format!("[{i}]: {why}"))?;
            }
        }
        Ok(())
    }
}

fn check_number(number: f64, schema: &Value) -> Result<(), String> {
    let below = schema["minimum"].as_f64().is_some_and(|min| number < min);
    let above = schema["maximum"].as_f64().is_some_and(|max| number > max);
    match below || above {
        true => Err(format!("{number} is out of bounds, by {schema}")),
        false => Ok(()),
    }
}

fn is_of(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        _ => false,
    }
}

#[test]
fn what_is_not_as_documented_is_found() {
    let document = serde_json::json!({ "components": { "schemas": {
        "Problem": { "type": "object" },
        "App": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": { "type": "string" },
                "cpus": { "type": ["integer", "null"], "minimum": 0 },
                "state": { "oneOf": [{ "const": "up" }, { "const": "down" }] },
                "pair": { "type": "array", "items": { "enum": [1, 2] }, "maxItems": 2 },
            },
        },
    } } });
    let schemas = Schemas::new(&document);
    let reference = serde_json::json!({ "$ref": "#/components/schemas/App" });
    let check = |text: &str, fits: bool| {
        let value: Value = serde_json::from_str(text).unwrap();
        assert_eq!(schemas.check(&value, &reference).is_ok(), fits, "{text}");
    };
    check(
        r#"{ "name": "a", "cpus": null, "state": "up", "pair": [1, 2] }"#,
        true,
    );
    check(r#"{ "cpus": 1 }"#, false);
    check(r#"{ "name": 1 }"#, false);
    check(r#"{ "name": "a", "cpus": -1 }"#, false);
    check(r#"{ "name": "a", "cpus": 1.5 }"#, false);
    check(r#"{ "name": "a", "state": "sideways" }"#, false);
    check(r#"{ "name": "a", "pair": [3] }"#, false);
    check(r#"{ "name": "a", "pair": [1, 1, 1] }"#, false);
    check(r#"{ "name": "a", "more": 1 }"#, false);
    check("[]", false);
    assert!(schemas.unknown().is_empty());
}
