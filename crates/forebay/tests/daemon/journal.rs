//! What a daemon whose standard error is the journal's writes there: a socket of the test's own stands in its place, in a
//! mount namespace of the daemon's, and is spoken to by the journal's native protocol.

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::place::{PATIENCE, Place};

/// Has standard error be the journal's stream, whose socket is in `$1`.
const AS_SYSTEMD: &str = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && \
                          mount --bind \"$1\" /run/systemd/journal && shift && \
                          JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) exec \"$@\"";

#[test]
fn events_are_in_the_journal_with_their_parts_as_fields() {
    let Some(mut place) = Place::new("events_are_in_the_journal_with_their_parts_as_fields") else {
        return;
    };
    place.configure(&format!(
        "[apps.web]\nclass = \"critical\"\nexec = [\"sleep\", \"{}\"]\n",
        place.seconds(1)
    ));
    let dir = place.path("journal");
    std::fs::create_dir(&dir).unwrap();
    let journal = UnixDatagram::bind(dir.join("socket")).unwrap();
    journal
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let reader = std::thread::spawn(move || {
        let until = Instant::now() + PATIENCE;
        let mut entry = vec![0; 64 << 10];
        let mut seen = Vec::new();
        while Instant::now() < until {
            let Ok(length) = journal.recv(&mut entry) else {
                continue;
            };
            let fields = fields(&entry[..length]);
            let is_it = fields.get("FOREBAY_APP").is_some_and(|app| app == "web")
                && fields
                    .get("TARGET")
                    .is_some_and(|of| of == "forebay::events");
            // Whoever is not read from holds up whoever writes.
            if is_it {
                return (journal, fields);
            }
            seen.push(fields);
        }
        panic!("no event of web came: {seen:#?}");
    });
    let program = place.daemon_command();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", AS_SYSTEMD, "sh"]);
    command.arg(&dir);
    command.arg(program.get_program()).args(program.get_args());
    place.start_with(command);
    let (journal, entry) = reader.join().unwrap();
    let field = |name: &str| entry.get(name).map(String::as_str);
    assert_eq!(field("FOREBAY_KIND"), Some("started"), "{entry:?}");
    assert_eq!(field("MESSAGE"), Some("was started"), "{entry:?}");
    assert_eq!(field("SYSLOG_IDENTIFIER"), Some("forebay"), "{entry:?}");
    assert_eq!(field("PRIORITY"), Some("5"), "{entry:?}");
    let text = place.log();
    assert!(
        !text.contains("forebay::events"),
        "it is there twice: {text}"
    );
    // From here on nobody listens, and the daemon goes on all the same.
    drop(journal);
    place.stop_well();
}

/// The fields of one entry, as the journal's native protocol writes them: `NAME=VALUE`, or the name alone, and the
/// value's length before it (systemd's JOURNAL_NATIVE_PROTOCOL).
fn fields(mut entry: &[u8]) -> BTreeMap<String, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut fields = BTreeMap::new();
    while let Some(end) = entry.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = (&entry[..end], &entry[end + 1..]);
        if let Some(at) = line.iter().position(|byte| *byte == b'=') {
            fields.insert(text(&line[..at]), text(&line[at + 1..]));
            entry = rest;
            continue;
        }
        let Some((length, rest)) = rest.split_first_chunk() else {
            break;
        };
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap();
        fields.insert(text(line), text(&rest[..length]));
        entry = &rest[length + 1..];
    }
    fields
}
