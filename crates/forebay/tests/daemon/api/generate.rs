//! Requests as the document describes them, and others.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::schema::Schemas;

/// Texts that some field somewhere takes, and some that none does. Nothing here is a program but `true`,
/// and no path leads anywhere: some of them become commands.
const TEXTS: [&str; 26] = [
    "web",
    "crunch",
    "web",
    "nope",
    "",
    "cpu",
    "memory",
    "batch",
    "critical",
    "class",
    "floor.cpu",
    "ceiling.memory",
    "0.5",
    "1GiB",
    "max",
    "-1",
    "100%",
    "true",
    "cordon",
    "resume",
    "../../nowhere",
    "/nowhere",
    "ü…\u{202e}",
    "a\u{0}b\u{7}",
    "<b>|&;$(x)`'\"\\",
    "1e999",
];
const NUMBERS: [&str; 9] = [
    "0",
    "1",
    "-1",
    "0.5",
    "3600",
    "18446744073709551615",
    "-9223372036854775808",
    "1e308",
    "1e-300",
];
/// What is no JSON, or none that is ever asked for.
const MALFORMED: [&[u8]; 8] = [
    b"",
    b"{",
    b"nul",
    b"[]",
    b"\"text\"",
    b"{\"a\":1,}",
    b"\xff\xfe",
    b"{} {}",
];
const DEPTH_MAX: u32 = 6;

/// One request.
pub(super) struct Request {
    method: String,
    uri: String,
    pub(super) body: Vec<u8>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body = String::from_utf8_lossy(&self.body);
        let shown: String = body.chars().take(2000).collect();
        write!(f, "{} {} {shown}", self.method, self.uri)
    }
}

impl Request {
    /// A request for an operation; one of a method that the path does not have where that is null.
    pub(super) fn make(
        path: &str,
        method: &str,
        operation: &Value,
        schemas: &Schemas<'_>,
        random: &mut fastrand::Rng,
    ) -> Self {
        let mut uri = String::new();
        for part in path.split('/').skip(1) {
            let parameter = part.starts_with('{');
            let text = if parameter {
                segment(random)
            } else {
                part.to_owned()
            };
            write!(uri, "/{text}").unwrap();
        }
        let parameters = operation["parameters"].as_array();
        let query = parameters
            .into_iter()
            .flatten()
            .filter(|p| p["in"] == "query");
        let mut separator = '?';
        for parameter in query {
            if random.u8(..3) == 0 {
                continue;
            }
            let value = match valid(&parameter["schema"], schemas, random, 0) {
                _ if random.u8(..3) == 0 => text(random),
                Value::String(text) => text,
                other => other.to_string(),
            };
            let name = parameter["name"].as_str().unwrap();
            write!(uri, "{separator}{name}={}", escaped(&value)).unwrap();
            separator = '&';
        }
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        let body = match schema {
            Value::Null => Vec::new(),
            schema => body(path, method, schema, schemas, random),
        };
        Self {
            method: method.to_ascii_uppercase(),
            uri,
            body,
        }
    }

    /// All before the body.
    pub(super) fn head(&self) -> Vec<u8> {
        let head = format!(
            "{} {} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            self.method,
            self.uri,
            self.body.len()
        );
        head.into_bytes()
    }
}

fn body(
    path: &str,
    method: &str,
    schema: &Value,
    schemas: &Schemas<'_>,
    random: &mut fastrand::Rng,
) -> Vec<u8> {
    match random.u8(..10) {
        0 => return MALFORMED[random.usize(..MALFORMED.len())].to_vec(),
        1 => return b"[".repeat(random.usize(..70_000)),
        _ => {}
    }
    let mut value = valid(schema, schemas, random, 0);
    if random.bool() {
        spoil(&mut value, random);
    }
    // The command of an update is an app that outlives the daemon; it has tests of its own.
    if (path, method) == ("/v1/update", "post") && value.get("command").is_some() {
        value["command"] = json!([]);
    }
    value.to_string().into_bytes()
}

/// A value that a schema allows, mostly.
fn valid(schema: &Value, schemas: &Schemas<'_>, random: &mut fastrand::Rng, depth: u32) -> Value {
    let schema = schemas.resolve(schema);
    for key in ["anyOf", "oneOf", "enum"] {
        if let Some(all) = schema[key].as_array() {
            let one = &all[random.usize(..all.len())];
            return match key {
                "enum" => one.clone(),
                _ => valid(one, schemas, random, depth),
            };
        }
    }
    if let Some(constant) = schema.get("const") {
        return constant.clone();
    }
    let kind = match &schema["type"] {
        Value::String(name) => name.as_str(),
        Value::Array(names) => names[random.usize(..names.len())].as_str().unwrap(),
        _ => "null",
    };
    match kind {
        "boolean" => random.bool().into(),
        "string" => text(random).into(),
        "integer" | "number" => number(random),
        "array" if depth < DEPTH_MAX => (0..random.usize(..3))
            .map(|_| valid(&schema["items"], schemas, random, depth + 1))
            .collect(),
        "object" => object(schema, schemas, random, depth),
        _ => Value::Null,
    }
}

fn object(schema: &Value, schemas: &Schemas<'_>, random: &mut fastrand::Rng, depth: u32) -> Value {
    let required = schema["required"].as_array();
    let mut object = Map::new();
    for (name, own) in schema["properties"].as_object().into_iter().flatten() {
        let is_required = required.is_some_and(|all| all.iter().any(|one| one == name));
        if is_required || depth < DEPTH_MAX && random.u8(..3) == 0 {
            object.insert(name.clone(), valid(own, schemas, random, depth + 1));
        }
    }
    object.into()
}

/// Makes one place in a value something else.
fn spoil(value: &mut Value, random: &mut fastrand::Rng) {
    match value {
        Value::Object(object) if !object.is_empty() && random.u8(..4) != 0 => {
            let names: Vec<String> = object.keys().cloned().collect();
            let name = &names[random.usize(..names.len())];
            match random.u8(..4) {
                0 => {
                    object.remove(name);
                }
                1 => {
                    object.insert("unknown".to_owned(), json!(1));
                }
                _ => spoil(&mut object[name.as_str()], random),
            }
        }
        Value::Array(items) if !items.is_empty() && random.bool() => {
            let i = random.usize(..items.len());
            spoil(&mut items[i], random);
        }
        value => {
            *value = match random.u8(..6) {
                0 => Value::Null,
                1 => number(random),
                2 => json!({ "a": [] }),
                3 => json!([text(random)]),
                4 => "x".repeat(random.usize(..5000)).into(),
                _ => text(random).into(),
            };
        }
    }
}

fn text(random: &mut fastrand::Rng) -> String {
    TEXTS[random.usize(..TEXTS.len())].to_owned()
}

fn number(random: &mut fastrand::Rng) -> Value {
    serde_json::from_str(NUMBERS[random.usize(..NUMBERS.len())]).unwrap()
}

/// A part of a path: an app that is there, or whatever else.
fn segment(random: &mut fastrand::Rng) -> String {
    match random.u8(..8) {
        0..=3 => ["web", "crunch", "cpu", "response_time"][random.usize(..4)].to_owned(),
        4 => "%ff%fe".to_owned(),
        5 => "x".repeat(random.usize(1..600)),
        _ => escaped(&text(random)),
    }
}

/// A text with all but letters and digits escaped for an address.
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}
