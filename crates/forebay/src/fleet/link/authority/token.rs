//! What one who joins is given out of band.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use forebay_core::fleet::HostName;
use serde::{Deserialize, Serialize};

use super::{Error, refused};

/// What every token begins with.
const TOKEN_PREFIX: &str = "forebay-join-1.";
/// Longer texts are no tokens.
const TOKEN_BYTES_MAX: usize = 1024;

/// Lets one host join, once; no log shows what lets in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token {
    /// Which one; the other side learns it before it is trusted.
    pub(in crate::fleet::link) id: String,
    /// What lets in.
    pub(in crate::fleet::link) secret: String,
    /// Whom.
    pub(crate) host: HostName,
    /// Into which fleet.
    pub(crate) fleet: String,
    /// The host that holds the authority.
    pub(crate) at: HostName,
    /// Of the authority's certificate, SHA-256: whoever joins knows by it whom it speaks to.
    pub(in crate::fleet::link) authority: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("id", &self.id)
            .field("host", &self.host)
            .field("fleet", &self.fleet)
            .field("at", &self.at)
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

impl Token {
    /// As it is handed over.
    pub(crate) fn text(&self) -> Result<String, serde_json::Error> {
        let json = serde_json::to_vec(self)?;
        Ok(format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(json)))
    }

    /// Reads one.
    ///
    /// # Errors
    /// When the text is none.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let none = || {
            refused(
                "read the token: it is none, or not all of one",
                "copy all of what `forebay fleet ca token HOST` printed",
            )
        };
        let text = text.trim();
        if text.len() > TOKEN_BYTES_MAX {
            return Err(none());
        }
        let json = text.strip_prefix(TOKEN_PREFIX).ok_or_else(none)?;
        let json = URL_SAFE_NO_PAD.decode(json).map_err(|_| none())?;
        serde_json::from_slice(&json).map_err(|_| none())
    }
}
