//! Puts the dashboard's files into the program.
//!
//! What `npm run build` made of them is taken where it is there. Without node the sources are taken as
//! they stand: the page works, and says that it has no charts.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// The web page's room, seen from this crate.
const WEB: &str = "../../web";

fn main() {
    let here =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo tells where the crate is"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo tells where to write"));
    let (built, source) = (here.join(WEB).join("dist"), here.join(WEB).join("src"));
    println!("cargo::rerun-if-changed={}", source.display());
    println!("cargo::rerun-if-changed={}", built.display());
    // `dist` is there without a build, too: what is not there counts as changed each time.
    let root = if built.join("index.html").exists() {
        built
    } else {
        source
    };
    let mut files = Vec::new();
    collect(&root, &root, &mut files);
    files.sort();
    let mut text = String::from("&[\n");
    for (name, path) in files {
        writeln!(text, "    ({name:?}, include_bytes!({path:?}).as_slice()),").expect("text grows");
    }
    text.push_str("]\n");
    fs::write(out.join("dashboard.rs"), text).expect("the list of files is written");
}

/// Each file below `directory`, with its name as the page asks for it.
fn collect(root: &Path, directory: &Path, files: &mut Vec<(String, String)>) {
    let entries = fs::read_dir(directory)
        .unwrap_or_else(|error| panic!("read {}: {error}", directory.display()));
    for entry in entries {
        let path = entry.expect("a directory lists its files").path();
        if path.is_dir() {
            collect(root, &path, files);
            continue;
        }
        if path.file_name().is_some_and(|name| name == ".keep") {
            continue;
        }
        let name = path.strip_prefix(root).expect("it is below it");
        let text = |path: &Path| path.to_str().expect("names of ours are text").to_owned();
        files.push((text(name), text(&path)));
    }
}
