//! Images of programs on the wire.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The apps that images are taken of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageList {
    /// By name.
    pub images: Vec<AppImages>,
}

/// The images of one app.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AppImages {
    /// The app.
    pub app: String,
    /// From the end of one image to the beginning of the next, in milliseconds.
    pub every_ms: u64,
    /// When the newest one was taken, in milliseconds since 1970.
    pub taken_unix_ms: Option<u64>,
    /// How large it is.
    pub bytes: Option<u64>,
    /// How long the program stood for it, in microseconds.
    pub pause_us: Option<u64>,
    /// Why there is no newer one.
    pub trouble: Option<String>,
}
