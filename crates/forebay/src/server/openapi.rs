//! The OpenAPI document, made from the table of routes and the wire types.

use forebay_api as api;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::peer::Access;
use super::routes::Route;

const DESCRIPTION: &str = "Forecasts, partitions and protects the applications of a Linux host.\n\n\
    Whoever asks is known by the credentials of the daemon's socket. `x-forebay-access` of an operation says who may: \
    `look` is for every user, or only for root and the group where `daemon.readers` is `group`; `change` is for root \
    and the members of `daemon.group`, which is forebay unless it was set; `root` is for root alone. Over loopback TCP, \
    `daemon.http`, everybody may look and nobody may do more. Others are answered 403.";

/// The document of these routes.
pub(super) fn document(routes: &[Route]) -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
        .into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for route in routes {
        let operation = operation(route, &mut generator);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.as_str().to_ascii_lowercase()] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Forebay",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": { "schemas": generator.take_definitions(true) },
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut parameters = path_parameters(route.path);
    if let Some(schema) = route.query {
        parameters.extend(query_parameters(schema(generator).as_value(), generator));
    }
    let mut success = json!({ "description": "Done" });
    if let Some(schema) = route.answer {
        success["content"][route.content] = json!({ "schema": schema(generator) });
    }
    let problem = generator.subschema_for::<api::Problem>();
    let refused = |why: &str| {
        json!({
            "description": why,
            "content": { "application/json": { "schema": problem } },
        })
    };
    let mut operation = json!({
        "summary": route.summary,
        "parameters": parameters,
        "x-forebay-access": route.access.name(),
        "responses": { "200": success, "default": refused("Refused") },
    });
    let allowed = match route.access {
        Access::Read => None,
        Access::Change => {
            Some("Only for root and members of `daemon.group` (forebay unless it was set).")
        }
        Access::Root => Some("Only for root."),
    };
    if let Some(allowed) = allowed {
        operation["description"] = allowed.into();
        operation["responses"]["403"] = refused("Somebody asks who may not");
    }
    if let Some(schema) = route.body {
        operation["requestBody"] = json!({
            "required": true,
            "content": { "application/json": { "schema": schema(generator) } },
        });
    }
    operation
}

fn path_parameters(path: &str) -> Vec<Value> {
    path.split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| {
            json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })
        })
        .collect()
}

/// One parameter for each property of an object's schema.
fn query_parameters(reference: &Value, generator: &SchemaGenerator) -> Vec<Value> {
    let name = reference["$ref"]
        .as_str()
        .and_then(|r| r.rsplit('/').next());
    let schema = name.and_then(|name| generator.definitions().get(name));
    let properties = schema.and_then(|schema| schema["properties"].as_object());
    properties
        .into_iter()
        .flatten()
        .map(|(name, schema)| {
            let mut schema = schema.clone();
            let description = schema
                .as_object_mut()
                .and_then(|object| object.remove("description"));
            json!({
                "name": name,
                "in": "query",
                "required": false,
                "description": description,
                "schema": schema,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::routes::routes;

    #[test]
    fn every_route_is_in_the_document() {
        let routes = routes();
        let document = document(&routes);
        for route in &routes {
            let method = route.method.as_str().to_ascii_lowercase();
            let operation = &document["paths"][route.path][&method];
            assert_eq!(operation["summary"], route.summary, "{}", route.path);
            if route.body.is_some() {
                let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
                assert!(schema.is_object(), "{} {method}", route.path);
            }
        }
        let listed: usize = document["paths"]
            .as_object()
            .unwrap()
            .values()
            .map(|methods| methods.as_object().unwrap().len())
            .sum();
        assert_eq!(listed, routes.len());
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(object) => {
                    found.extend(object.get("$ref").and_then(Value::as_str));
                    object.values().for_each(|value| references(value, found));
                }
                Value::Array(values) => values.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = document(&routes());
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 20, "{found:?}");
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn queries_are_parameters() {
        let document = document(&routes());
        let parameters = &document["paths"]["/v1/history/{app}/{resource}"]["get"]["parameters"];
        let names: Vec<&str> = parameters
            .as_array()
            .unwrap()
            .iter()
            .map(|parameter| parameter["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["app", "resource", "limit", "since_unix_ms", "step"]);
    }
}
