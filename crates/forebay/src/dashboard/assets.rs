//! The files of the page, as they were when the program was built.

use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};

/// Name and content of each.
const FILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/dashboard.rs"));

/// Gives the file that is asked for.
pub(super) async fn serve(uri: Uri) -> Response {
    let name = match uri.path().trim_start_matches('/') {
        "" => "index.html",
        name => name,
    };
    let Some((_, content)) = FILES.iter().find(|(known, _)| *known == name) else {
        return (StatusCode::NOT_FOUND, "there is no such page\n").into_response();
    };
    // Another build has other files under the same names: they are asked for each time.
    let headers = [
        (header::CONTENT_TYPE, kind(name)),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, *content).into_response()
}

fn kind(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_in_the_program() {
        for name in ["index.html", "style.css", "main.js"] {
            let file = FILES.iter().find(|(known, _)| *known == name);
            assert!(
                file.is_some_and(|(_, content)| !content.is_empty()),
                "{name}"
            );
        }
    }

    #[test]
    fn the_page_is_small() {
        let all: usize = FILES.iter().map(|(_, content)| content.len()).sum();
        assert!(all < 250_000, "{all} bytes");
    }

    #[test]
    fn nothing_of_it_is_asked_of_other_hosts() {
        for (name, content) in FILES {
            let text = String::from_utf8_lossy(content);
            for word in ["src=\"http", "href=\"http", "url(http", "@import"] {
                assert!(!text.contains(word), "{name} has {word}");
            }
        }
    }
}
