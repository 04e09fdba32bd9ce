//! What a daemon whose standard error is the journal's writes there: a socket of the test's own stands in its place, in a
//! mount namespace of the daemon's, and is spoken to by the journal's native protocol.

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
            let text = String::from_utf8_lossy(&entry[..length]).into_owned();
            let is_whole = [
                "FOREBAY_APP=web\n",
                "FOREBAY_KIND=",
                "TARGET=forebay::events\n",
            ]
            .iter()
            .all(|part| text.contains(part));
            // Whoever is not read from holds up whoever writes.
            if is_whole {
                return (journal, text);
            }
            seen.push(text);
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
    for part in ["SYSLOG_IDENTIFIER=forebay\n", "PRIORITY=5\n", "MESSAGE"] {
        assert!(entry.contains(part), "{part} is not in {entry}");
    }
    let text = place.log();
    assert!(
        !text.contains("forebay::events"),
        "it is there twice: {text}"
    );
    // From here on nobody listens, and the daemon goes on all the same.
    drop(journal);
    place.stop_well();
}
