//! Why an app may do on block devices what it may, in sentences with the numbers that decided.

use forebay_api as api;

use super::render::{limit, memory_f64};

/// One paragraph for I/O as a whole, and one for each device.
pub(super) fn io(explanation: &api::Explanation) -> Vec<String> {
    let app = &explanation.app;
    let mut paragraphs = vec![whole(&app.io)];
    let used = app.io.devices.iter().map(|used| used.device.as_str());
    let planned = explanation
        .devices
        .iter()
        .map(|planned| planned.device.as_str());
    let limited = app.slice.io_max.iter().map(|max| max.device.as_str());
    let mut devices: Vec<&str> = used.chain(planned).chain(limited).collect();
    devices.sort_unstable();
    devices.dedup();
    paragraphs.extend(devices.iter().filter_map(|name| device(explanation, name)));
    paragraphs
}

fn whole(io: &api::Io) -> String {
    let Some(stalled) = io.stalled else {
        return match io.devices.is_empty() {
            true => "It used no block device, as far as the kernel says.".to_owned(),
            false => "How long it waits for I/O the kernel does not say.".to_owned(),
        };
    };
    let waits = format!(
        "Some task waited for I/O {:.1}% of the time.",
        stalled * 100.0
    );
    let each = match (io.wait_seconds, io.wait_alone_seconds) {
        (Some(wait), Some(alone)) => format!(
            " Each request was waited for {:.2} ms; alone, requests of this length take {:.2} ms.",
            wait * 1e3,
            alone * 1e3
        ),
        (Some(wait), None) => format!(
            " Each request was waited for {:.2} ms; what they take alone is not known.",
            wait * 1e3
        ),
        (None, _) => String::new(),
    };
    format!("{waits}{each}")
}

fn device(explanation: &api::Explanation, name: &str) -> Option<String> {
    let app = &explanation.app;
    let used = app.io.devices.iter().find(|used| used.device == name);
    let plan = explanation.devices.iter().find(|plan| plan.device == name);
    let max = app.slice.io_max.iter().find(|max| max.device == name);
    let mut text = match plan {
        Some(plan) => format!("Device {} ({name})", plan.name),
        None => format!("Device {name}"),
    };
    match used {
        Some(used) => text += &use_of(used),
        None if plan.is_some_and(|plan| plan.bound == api::IoBound::Free) && max.is_none() => {
            return None;
        }
        None => text += ": it does nothing there.",
    }
    match plan {
        Some(plan) => {
            text += &capability(plan);
            text += &room(app, plan);
        }
        None => {
            text += &format!(
                " What the device can do is not known, so nothing is planned there: \
                 `forebay calibrate` measures it ({name} in `lsblk`)."
            );
        }
    }
    match max {
        Some(max) => text += &format!(" In force: {}.", in_force(max)),
        None if app.class == api::Class::Batch => text += " No limit is in force.",
        None => {}
    }
    let targets = &app.slice.io_latency;
    if let Some(target) = targets.iter().find(|target| target.device == name) {
        text += &held_for(&target.target_seconds);
    }
    Some(text)
}

fn use_of(used: &api::DeviceIo) -> String {
    let mut text = format!(
        ": it reads {}/s in {:.0} requests/s and writes {}/s in {:.0} requests/s",
        memory_f64(used.read_bytes_per_second),
        used.reads_per_second,
        memory_f64(used.write_bytes_per_second),
        used.writes_per_second,
    );
    if let Some(share) = used.share {
        text += &format!(", which takes {} of the device", percent(share));
    }
    text += ".";
    if let Some(band) = &used.demand {
        text += &format!(
            " Expected at most: {} (q50), {} (q95), {} (q99), says the model `{}`.",
            percent(band.q50),
            percent(band.q95),
            percent(band.q99),
            band.model
        );
    }
    text
}

fn capability(plan: &api::DevicePlan) -> String {
    let writes = match plan.writes_measured {
        true => "",
        false => "; writes were not measured and are taken to be as fast",
    };
    format!(
        " It was measured at {}/s and {} requests/s for reads, {:.2} ms at worst for one \
         alone{writes}.",
        memory_f64(bytes(plan.read_bytes_per_second)),
        plan.read_requests_per_second,
        plan.read_p99_seconds * 1e3,
    )
}

fn room(app: &api::App, plan: &api::DevicePlan) -> String {
    let used_by = plan.used_by.join(", ");
    let why = match plan.bound {
        api::IoBound::Free if plan.room < 1.0 => format!(
            " No critical app uses it any more; batch is released a step at a time and may take {} \
             by now.",
            percent(plan.room)
        ),
        api::IoBound::Free => " No critical app uses it, so batch may take all of it.".to_owned(),
        api::IoBound::Bandwidth => format!(
            " {used_by} will need {} of it with headroom; of the rest, less a margin in which \
             queues stay short, batch may take {}.",
            percent(plan.critical),
            percent(plan.room)
        ),
        api::IoBound::Delay => format!(
            " {used_by} waits for its requests, so what batch may send at a time (in 100 ms) must \
             be served within one slow request: batch may take {}.",
            percent(plan.room)
        ),
    };
    let pressed = match plan.pressed_to_percent {
        100 => String::new(),
        to => format!(
            " Critical requests still took more than twice their time, so that is {to}% of what it \
             would be."
        ),
    };
    let shared = match (app.class, plan.sharers) {
        (api::Class::Batch, 2..) if plan.room < 1.0 => {
            format!(" {} batch apps share that.", plan.sharers)
        }
        _ => String::new(),
    };
    format!("{why}{pressed}{shared}")
}

fn held_for(target: &api::Limit<f64>) -> String {
    match target {
        api::Limit::At(seconds) => format!(
            " While its requests take longer than {:.2} ms (io.latency), the kernel holds back every \
             group beside it.",
            seconds * 1e3
        ),
        api::Limit::Max(_) => String::new(),
    }
}

fn in_force(max: &api::IoMax) -> String {
    let amount = |bytes_: &u64| format!("{}/s", memory_f64(bytes(*bytes_)));
    format!(
        "io.max {} rbps={} wbps={} riops={} wiops={}",
        max.device,
        limit(&max.rbps, amount),
        limit(&max.wbps, amount),
        limit(&max.riops, ToString::to_string),
        limit(&max.wiops, ToString::to_string),
    )
}

fn percent(part: f64) -> String {
    format!("{:.1}%", part * 100.0)
}

#[expect(clippy::cast_precision_loss, reason = "bytes a second, for people")]
const fn bytes(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::{crunch, explanation, web};

    fn plan(bound: api::IoBound, room: f64) -> api::DevicePlan {
        api::DevicePlan {
            device: "8:0".to_owned(),
            name: "sda".to_owned(),
            read_bytes_per_second: 100 << 20,
            read_requests_per_second: 4000,
            read_p99_seconds: 0.002,
            writes_measured: false,
            critical: 0.13,
            room,
            sharers: 2,
            bound,
            pressed_to_percent: 70,
            used_by: vec!["web".to_owned()],
        }
    }

    fn used() -> api::DeviceIo {
        api::DeviceIo {
            device: "8:0".to_owned(),
            read_bytes_per_second: 4096.0 * 400.0,
            write_bytes_per_second: 0.0,
            reads_per_second: 400.0,
            writes_per_second: 0.0,
            share: Some(0.1),
            demand: None,
        }
    }

    #[test]
    fn every_number_that_decided_is_there() {
        let mut told = explanation(api::App {
            io: api::Io {
                devices: vec![used()],
                stalled: Some(0.5),
                wait_seconds: Some(0.003),
                wait_alone_seconds: Some(0.001),
            },
            slice: api::Slice {
                io_max: vec![api::IoMax {
                    device: "8:0".to_owned(),
                    rbps: api::Limit::At(1 << 20),
                    wbps: api::Limit::At(1 << 20),
                    riops: api::Limit::At(40),
                    wiops: api::Limit::MAX,
                }],
                ..api::Slice::default()
            },
            ..crunch()
        });
        told.devices = vec![plan(api::IoBound::Delay, 0.02)];
        let text = io(&told).join("\n");
        for words in [
            "I/O 50.0% of the time",
            "waited for 3.00 ms; alone, requests of this length take 1.00 ms",
            "Device sda (8:0): it reads 1.6 MiB/s in 400 requests/s",
            "takes 10.0% of the device",
            "100.0 MiB/s and 4000 requests/s",
            "2.00 ms at worst",
            "writes were not measured",
            "web waits for its requests",
            "batch may take 2.0%",
            "70% of what it would be",
            "2 batch apps share that",
            "io.max 8:0 rbps=1.0 MiB/s wbps=1.0 MiB/s riops=40 wiops=max",
        ] {
            assert!(text.contains(words), "`{words}` is not in: {text}");
        }
    }

    #[test]
    fn a_target_is_said_with_whom_it_holds_back() {
        let mut told = explanation(web());
        told.devices = vec![plan(api::IoBound::Bandwidth, 0.5)];
        told.app.slice.io_latency = vec![api::IoLatency {
            device: "8:0".to_owned(),
            target_seconds: api::Limit::At(0.004),
        }];
        let text = io(&told).join("\n");
        assert!(text.contains("longer than 4.00 ms (io.latency)"), "{text}");
        told.app.slice.io_latency[0].target_seconds = api::Limit::MAX;
        assert!(!io(&told).join("\n").contains("io.latency"));
    }

    #[test]
    fn what_is_not_measured_says_how_to_measure_it() {
        let told = explanation(api::App {
            io: api::Io {
                devices: vec![api::DeviceIo {
                    share: None,
                    ..used()
                }],
                ..api::Io::default()
            },
            ..web()
        });
        let text = io(&told).join("\n");
        assert!(text.contains("forebay calibrate"), "{text}");
        assert!(text.contains("the kernel does not say"), "{text}");
    }

    #[test]
    fn a_device_that_concerns_nobody_is_left_out() {
        let mut told = explanation(web());
        told.devices = vec![plan(api::IoBound::Free, 1.0)];
        assert_eq!(io(&told).len(), 1);
        told.devices = vec![plan(api::IoBound::Bandwidth, 0.5)];
        assert_eq!(io(&told).len(), 2);
    }
}
