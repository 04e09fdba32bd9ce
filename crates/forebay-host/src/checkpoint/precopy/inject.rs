//! One system call within another process, by ptrace, leaving no trace of itself.
//!
//! The thread is stopped where signals are delivered, so that the call that it was interrupted in is
//! begun anew by the kernel as after any signal; its registers are put back at such a stop as well, not
//! at the end of the injected call, from where nothing would restart the interrupted one.

use std::io;

use crate::error::HostError;

/// Who is stopped, for errors.
fn attempt(what: &str, pid: i32) -> String {
    format!("{what} process {pid}")
}

fn refused(pid: i32, why: &str) -> HostError {
    HostError::invalid(
        format!("track what process {pid} writes: {why}"),
        "it goes on as before; move it by a restart or through its shadow",
    )
}

#[cfg(not(target_arch = "x86_64"))]
mod machine {
    use super::*;

    /// No process is stopped on other machines.
    #[derive(Debug)]
    pub(crate) struct Stopped(std::convert::Infallible);

    impl Stopped {
        pub(crate) fn stop(pid: i32) -> Result<Self, HostError> {
            Err(refused(pid, "that is known for x86-64 alone"))
        }

        pub(crate) fn call(&mut self, _: i64, _: [u64; 3]) -> io::Result<u64> {
            match self.0 {}
        }

        pub(crate) fn release(self) -> Result<(), HostError> {
            match self.0 {}
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod machine {
    use std::fs;
    use std::os::unix::fs::FileExt as _;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::checkpoint::precopy::maps;

    const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
    const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
    /// Filters of system calls do not see what is injected.
    const PTRACE_O_SUSPEND_SECCOMP: usize = 1 << 21;
    /// Stops at system calls are told from those at signals.
    const PTRACE_O_TRACESYSGOOD: usize = 1;
    /// Bytes of a set of signals.
    const SIGNALS: usize = 8;
    /// The instruction `syscall`.
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    /// Stops that are passed on before the one that was asked for, at most.
    const STOPS_MAX: u32 = 64;
    /// How long a thread may take to stop for the first time.
    const STOP_MAX: Duration = Duration::from_secs(5);
    /// Between two looks whether it did.
    const LOOK: Duration = Duration::from_micros(50);

    /// A thread that stands still, with what it has to get back.
    #[derive(Debug)]
    pub(crate) struct Stopped {
        pid: libc::pid_t,
        registers: libc::user_regs_struct,
        signals: u64,
        /// Where an instruction `syscall` is.
        instruction: u64,
        is_changed: bool,
        is_attached: bool,
    }

    /// How a thread stopped.
    enum Stop {
        /// As it was asked to.
        Asked,
        /// At the edge of a system call.
        Call,
        /// Since somebody stopped it with this signal.
        Group,
        /// To be given this signal.
        Signal(i32),
    }

    impl Stopped {
        /// Stops the first thread of a process. One that does not stop is let go of when the thread ends that
        /// asked for it: until then nobody can take that back.
        pub(crate) fn stop(pid: i32) -> Result<Self, HostError> {
            let instruction = syscall_instruction(pid)?;
            let options = if is_filtered(pid) {
                PTRACE_O_SUSPEND_SECCOMP
            } else {
                0
            };
            trace(libc::PTRACE_SEIZE, pid, options | PTRACE_O_TRACESYSGOOD)
                .map_err(|e| HostError::io(attempt("stop", pid), e))?;
            let mut stopped = Self {
                pid,
                registers: blank(),
                signals: 0,
                instruction,
                is_changed: false,
                is_attached: true,
            };
            let until = Instant::now() + STOP_MAX;
            if let Err(error) = stopped.interrupt(None, Some(until)) {
                stopped.is_attached = stopped.is_attached && Instant::now() < until;
                return Err(error);
            }
            stopped.registers = registers(pid)?;
            stopped.signals = signal_mask(pid)?;
            // Signals wait, so that nothing of the program runs meanwhile.
            set_signal_mask(pid, u64::MAX)?;
            stopped.is_changed = true;
            Ok(stopped)
        }

        /// What a system call answers; a refusal of the kernel is its error.
        pub(crate) fn call(&mut self, number: i64, arguments: [u64; 3]) -> io::Result<u64> {
            let [first, second, third] = arguments;
            let registers = libc::user_regs_struct {
                rip: self.instruction,
                rax: number.cast_unsigned(),
                orig_rax: u64::MAX,
                rdi: first,
                rsi: second,
                rdx: third,
                ..self.registers
            };
            set_registers(self.pid, &registers)?;
            for _ in ["the beginning", "the end"] {
                trace(libc::PTRACE_SYSCALL, self.pid, 0)?;
                match wait(self.pid, None)? {
                    Stop::Call => {}
                    _ => return Err(io::Error::other("it stopped elsewhere")),
                }
            }
            let answer = read_registers(self.pid)?.rax.cast_signed();
            // It goes back to where signals are delivered without an instruction of its own.
            self.interrupt(Some(libc::PTRACE_CONT), None)
                .map_err(io::Error::other)?;
            match i32::try_from(answer) {
                Ok(code @ -4095..0) => Err(io::Error::from_raw_os_error(-code)),
                _ => Ok(answer.cast_unsigned()),
            }
        }

        /// Lets it go on as if nothing had been.
        pub(crate) fn release(mut self) -> Result<(), HostError> {
            self.undo()
                .map_err(|e| HostError::io(attempt("let go of", self.pid), e))
        }

        fn undo(&mut self) -> io::Result<()> {
            if !self.is_attached {
                return Ok(());
            }
            self.is_attached = false;
            if self.is_changed {
                set_registers(self.pid, &self.registers)?;
                set_mask(self.pid, self.signals)?;
            }
            trace(libc::PTRACE_DETACH, self.pid, 0)
        }

        /// Asks it to stop, and waits for that; signals that come first are passed on. Without a bound where it
        /// cannot be left as it is.
        fn interrupt(
            &mut self,
            go_on: Option<libc::c_uint>,
            until: Option<Instant>,
        ) -> Result<(), HostError> {
            let fail = |e| HostError::io(attempt("stop", self.pid), e);
            trace(libc::PTRACE_INTERRUPT, self.pid, 0).map_err(fail)?;
            if let Some(request) = go_on {
                trace(request, self.pid, 0).map_err(fail)?;
            }
            for _ in 0..STOPS_MAX {
                let stop = wait(self.pid, until);
                if let Err(error) = &stop
                    && error.kind() == io::ErrorKind::TimedOut
                {
                    let why =
                        "its first thread waits for a device, or is frozen, and does not stop";
                    return Err(refused(self.pid, why));
                }
                match stop.map_err(fail)? {
                    Stop::Asked => return Ok(()),
                    Stop::Group => return Err(refused(self.pid, "it was stopped by a signal")),
                    Stop::Call => trace(libc::PTRACE_CONT, self.pid, 0).map_err(fail)?,
                    Stop::Signal(signal) => {
                        let signal = usize::try_from(signal).unwrap_or(0);
                        trace(libc::PTRACE_CONT, self.pid, signal).map_err(fail)?;
                    }
                }
            }
            Err(refused(self.pid, "it gets signals without end"))
        }
    }

    impl Drop for Stopped {
        fn drop(&mut self) {
            if let Err(error) = self.undo() {
                let pid = self.pid;
                tracing::warn!(pid, %error, "a process that was stopped may have ended");
            }
        }
    }

    /// The address of an instruction `syscall`, in the code that the kernel maps into every process.
    fn syscall_instruction(pid: i32) -> Result<u64, HostError> {
        let areas = maps::read(pid)?;
        let vdso = areas.iter().find(|area| area.name == "[vdso]");
        let vdso = vdso.ok_or_else(|| refused(pid, "it has no vDSO"))?;
        let length = usize::try_from(vdso.end - vdso.start)
            .ok()
            .filter(|length| *length <= 1 << 20)
            .ok_or_else(|| refused(pid, "its vDSO is too large"))?;
        let mut code = vec![0; length];
        let path = format!("/proc/{pid}/mem");
        fs::File::open(&path)
            .and_then(|memory| memory.read_exact_at(&mut code, vdso.start))
            .map_err(|e| HostError::io(format!("read {path}"), e))?;
        let place = code.windows(2).position(|bytes| bytes == SYSCALL);
        let place = place.and_then(|place| u64::try_from(place).ok());
        place
            .map(|place| vdso.start + place)
            .ok_or_else(|| refused(pid, "no system call is in its vDSO"))
    }

    /// Whether a filter looks at its system calls.
    fn is_filtered(pid: i32) -> bool {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("Seccomp:"));
        line.is_some_and(|mode| mode.trim() != "0")
    }

    fn registers(pid: libc::pid_t) -> Result<libc::user_regs_struct, HostError> {
        read_registers(pid).map_err(|e| HostError::io(attempt("read the registers of", pid), e))
    }

    fn signal_mask(pid: libc::pid_t) -> Result<u64, HostError> {
        let mut mask = 0_u64;
        trace_at(PTRACE_GETSIGMASK, pid, SIGNALS, (&raw mut mask).cast())
            .map_err(|e| HostError::io(attempt("read the signals that wait of", pid), e))?;
        Ok(mask)
    }

    fn set_signal_mask(pid: libc::pid_t, mask: u64) -> Result<(), HostError> {
        set_mask(pid, mask).map_err(|e| HostError::io(attempt("hold signals back from", pid), e))
    }

    fn set_mask(pid: libc::pid_t, mut mask: u64) -> io::Result<()> {
        trace_at(PTRACE_SETSIGMASK, pid, SIGNALS, (&raw mut mask).cast())
    }

    fn set_registers(pid: libc::pid_t, registers: &libc::user_regs_struct) -> io::Result<()> {
        let mut registers = *registers;
        trace_at(libc::PTRACE_SETREGS, pid, 0, (&raw mut registers).cast())
    }

    fn read_registers(pid: libc::pid_t) -> io::Result<libc::user_regs_struct> {
        let mut registers = blank();
        trace_at(libc::PTRACE_GETREGS, pid, 0, (&raw mut registers).cast())?;
        Ok(registers)
    }

    #[expect(unsafe_code, reason = "registers are plain numbers")]
    fn blank() -> libc::user_regs_struct {
        // SAFETY: the structure holds integers alone, of which all bits may be zero.
        unsafe { std::mem::zeroed() }
    }

    fn trace(request: libc::c_uint, pid: libc::pid_t, data: usize) -> io::Result<()> {
        trace_at(request, pid, 0, std::ptr::without_provenance_mut(data))
    }

    /// `data` is a number or what the request reads or writes.
    #[expect(unsafe_code, reason = "rustix has no ptrace")]
    fn trace_at(
        request: libc::c_uint,
        pid: libc::pid_t,
        address: usize,
        data: *mut libc::c_void,
    ) -> io::Result<()> {
        let address: *mut libc::c_void = std::ptr::without_provenance_mut(address);
        // SAFETY: `data` is a number, or points to a live value of the size that the request has, and
        // the callers above use no request that writes elsewhere in this process.
        let result = unsafe { libc::ptrace(request, pid, address, data) };
        if result == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// How it stopped; `TimedOut` where it did not by then.
    #[expect(unsafe_code, reason = "rustix tells no events of ptrace")]
    fn wait(pid: libc::pid_t, until: Option<Instant>) -> io::Result<Stop> {
        const EVENT_STOP: i32 = 128;
        let at_once = until.map_or(0, |_| libc::WNOHANG);
        let mut status = 0;
        loop {
            // SAFETY: waitpid writes one integer, which lives.
            let found = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL | at_once) };
            if found == pid {
                break;
            }
            if found == 0 {
                if until.is_some_and(|until| Instant::now() >= until) {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                std::thread::sleep(LOOK);
                continue;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        if !libc::WIFSTOPPED(status) {
            return Err(io::Error::other("it ended"));
        }
        let signal = libc::WSTOPSIG(status);
        Ok(match (status >> 16, signal) {
            (EVENT_STOP, libc::SIGTRAP) => Stop::Asked,
            (EVENT_STOP, _) => Stop::Group,
            (_, signal) if signal == libc::SIGTRAP | 0x80 => Stop::Call,
            (_, signal) => Stop::Signal(signal),
        })
    }
}

pub(crate) use machine::Stopped;
