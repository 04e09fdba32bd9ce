//! Taking up a process that came from another host as the program of an app.
//!
//! It stands still while this is done: whoever let it go on before the ledger names it would leave a
//! program that the next daemon starts a second time.

use forebay_core::app::{App, Binding};

use crate::apply::Refusal;
use crate::error::HostError;
use crate::host::LinuxHost;
use crate::ledger::{Process, Record};
use crate::procs;
use crate::supervise::Main;

impl LinuxHost {
    /// Makes a process the app's program, durably.
    pub(crate) fn adopt_process(&mut self, app: &App, process: Process) -> Result<(), Refusal> {
        let (id, pid) = (&app.id, process.pid);
        let Binding::Exec(exec) = &app.binding else {
            return Err(Refusal::Failed(format!(
                "take process {pid} up as {id}: it is not an app that Forebay starts; bind it with `exec`"
            )));
        };
        let proc_root = self.options.roots.proc.clone();
        let entry = self.entries.get(id);
        if let Some(main) = entry.and_then(|entry| entry.main.as_ref()) {
            if main.process == process {
                return Ok(());
            }
            if procs::is_alive(&proc_root, main.process) {
                return Err(Refusal::Failed(format!(
                    "take process {pid} up as {id}: process {} is that already; end it first",
                    main.process.pid
                )));
            }
        }
        // Once it is held on to, its number is no other's.
        let main = Main::open(process).filter(|main| procs::is_alive(&proc_root, main.process));
        let main = main.ok_or_else(|| {
            HostError::missing(
                format!("take process {pid} up as {id}: it ended"),
                "it goes on where it came from",
            )
        })?;
        self.enter(id, &[pid])?;
        self.ledger.append(Record::Started {
            app: id.clone(),
            process,
            command: exec.command.clone(),
        })?;
        self.ledger.sync()?;
        let entry = self.entries.entry(id.clone()).or_default();
        entry.main = Some(main);
        entry.ended = None;
        entry.kept.clear();
        entry.command.clone_from(&exec.command);
        entry.trial = None;
        entry.comparing = None;
        entry.restoring = None;
        Ok(())
    }
}
