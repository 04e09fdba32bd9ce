//! The address that goes where an app goes.

use forebay_core::app::App;
use forebay_core::fleet::mobility::{ServiceAddress, Way};

use super::error::{Findings, Problem};
use super::text::{At, Section};

/// The longest name of a network device, in bytes.
const DEVICE_MAX: usize = 15;

/// The address that goes along.
pub(super) fn address(
    movable: &mut Section,
    way: Option<Way>,
    findings: &mut Findings<'_>,
) -> Option<ServiceAddress> {
    let text = movable.take::<String>("address");
    let device = movable.take::<String>("device");
    if let Some(At { value, at }) = &device {
        let is_name = |name: &str| {
            !matches!(name, "." | "..")
                && name.len() <= DEVICE_MAX
                && !name.contains(|letter: char| letter == '/' || letter.is_whitespace())
        };
        let problem = match (text.is_none(), is_name(value)) {
            (true, _) => Some(Problem::new(
                format!("`{value}` is the device of no address"),
                "give the `address` that goes along, or leave `device` out",
            )),
            (false, false) => Some(Problem::new(
                format!("`{value}` is no name of a network device"),
                "name one that `ip link` shows, or leave it out",
            )),
            (false, true) => None,
        };
        if let Some(problem) = problem {
            findings.add(*at, movable.key("device"), problem);
        }
    }
    let At { value, at } = text?;
    let device = device.map(|device| device.value);
    let problem = match (way, ServiceAddress::parse(&value, device)) {
        (Some(Way::Restart | Way::Checkpoint), Ok(address)) => return Some(address),
        // What is wrong with the mode is said there.
        (None, Ok(_)) if movable.refused => return None,
        (_, Err((message, fix))) => Problem::new(message, fix),
        (_, Ok(_)) => Problem::new(
            format!("{value} goes along with nothing"),
            "an address goes along by mode \"restart\" or \"checkpoint\"; leave it out",
        ),
    };
    findings.add(at, movable.key("address"), problem);
    None
}

/// Checks that no other app has an app's address.
pub(super) fn check_address<'a>(
    app: &App,
    mut others: impl Iterator<Item = &'a App>,
) -> Result<(), Problem> {
    let ip = |app: &App| Some(app.mobility.as_ref()?.address.as_ref()?.ip);
    let Some(own) = ip(app) else {
        return Ok(());
    };
    match others.find(|other| ip(other) == Some(own)) {
        None => Ok(()),
        Some(other) => Err(Problem::new(
            format!("app `{}` has the address {own}, too", other.id),
            "give each app one of its own: it goes where that app goes",
        )),
    }
}
