//! The process of a device: what it does, and how it is started and ended.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};

use crate::backends::Found;
use crate::broker::check_kernel;
use crate::device::{BuildError, Constant, Device, DeviceError, Timing};
use crate::kernel::Kernel;
use crate::memory::Region;
use crate::task::View;
use crate::wire::{Definition, Order, Reader, Report, Source, send};

/// Starts processes of devices.
pub trait Launcher: Send + Sync + fmt::Debug {
    /// Starts one for a device; it says [ready](serve) first.
    ///
    /// # Errors
    /// What the system says.
    fn launch(&self, device: &str) -> io::Result<Process>;
}

/// A process that runs, and is ended when this is dropped.
pub struct Process {
    pub socket: OwnedFd,
    /// Ends it, whatever it does, and waits until it is gone.
    pub end: Box<dyn FnMut() + Send>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").finish_non_exhaustive()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        (self.end)();
    }
}

/// Both ends of a connection to a device.
///
/// # Errors
/// What the system says.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok((ours, theirs))
}

/// Starts this program again, as `accel-device ID`, with the connection as its standard input.
#[derive(Debug, Clone, Copy)]
pub struct OwnProgram;

impl Launcher for OwnProgram {
    fn launch(&self, device: &str) -> io::Result<Process> {
        start(device)
    }
}

fn start(argument: &str) -> io::Result<Process> {
    let (ours, theirs) = pair()?;
    let mut child = Command::new("/proc/self/exe")
        .args(["accel-device", argument])
        // Mesa's layer would ask a display server which device comes first.
        .env("NODEVICE_SELECT", "1")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()?;
    let end = move || {
        // One that ended already cannot be ended, and is waited for all the same.
        child.kill().ok();
        if let Err(error) = child.wait() {
            tracing::warn!(%error, "the process of a device is not waited for");
        }
    };
    Ok(Process {
        socket: ours,
        end: Box::new(end),
    })
}

/// The argument by which a process looks for devices.
pub const LOOK: &str = "--list";

/// What devices there are. Looked for in a process of its own, since libraries of drivers are
/// loaded for it.
///
/// # Errors
/// When the process does not answer in time.
pub fn find(within: Duration) -> Result<Found, String> {
    let failed = |why: &dyn fmt::Display| format!("look for devices: {why}; only the CPU is used");
    let process = start(LOOK).map_err(|error| failed(&error))?;
    let found = Reader::default().receive_within(&process.socket, within);
    match found.map_err(|error| failed(&error))? {
        Some((found, _)) => Ok(found),
        None => Err(failed(&"a driver ended the process that looked")),
    }
}

/// Is the process of a device, or the one that looks for devices, until the broker is gone.
///
/// # Errors
/// When the broker cannot be heard.
pub fn run(argument: &str) -> io::Result<()> {
    // With the broker its devices end, even in the middle of a kernel.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::thread::set_no_new_privs(true)?;
    // It was started by another name than its own.
    rustix::thread::set_name(c"accel-device")?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // A crash is expected, and its memory is of no use to anybody.
    setrlimit(Resource::Core, none)?;
    let broker = io::stdin().as_fd().try_clone_to_owned()?;
    if argument == LOOK {
        return send(&broker, &crate::backends::find(), &[]);
    }
    match crate::backends::open(argument) {
        Ok(mut device) => serve(&broker, &mut *device),
        Err(why) => send(&broker, &Report::Unusable(why), &[]),
    }
}

/// Does what the broker says until it is gone.
///
/// # Errors
/// When it cannot be heard.
pub fn serve(broker: &OwnedFd, device: &mut dyn Device) -> io::Result<()> {
    send(broker, &Report::Ready(device.info().clone()), &[])?;
    let mut kernels: BTreeMap<String, Kernel> = BTreeMap::new();
    let mut reader = Reader::default();
    while let Some((order, descriptors)) = reader.receive(broker)? {
        let report = match order {
            Order::Build { name, definition } => {
                let built = look_up(&name, definition.as_ref()).and_then(|mut kernel| {
                    // Those of two clients may have one name: a device knows them apart by this.
                    kernel.name = name.clone().into();
                    device.build(&kernel)?;
                    kernels.insert(name, kernel);
                    Ok(())
                });
                Report::Built(built)
            }
            Order::Run {
                name,
                buffers,
                scalars,
                launches,
                forget,
            } => {
                device.forget(&forget);
                let kept: Vec<Option<Constant>> = buffers.iter().map(|one| one.keep).collect();
                Report::Ran(kernels.get(&name).map_or_else(
                    || Err(DeviceError::Failed(format!("kernel {name} was not built"))),
                    |kernel| {
                        with_views(&buffers, descriptors, |views| {
                            device.run(kernel, views, &kept, &scalars, &launches)
                        })
                    },
                ))
            }
            Order::Forget(constants) => {
                device.forget(&constants);
                continue;
            }
        };
        send(broker, &report, &[])?;
    }
    Ok(())
}

fn look_up(name: &str, definition: Option<&Definition>) -> Result<Kernel, BuildError> {
    if let Some(definition) = definition {
        return check_kernel(definition).map_err(BuildError::Failed);
    }
    let mut all = crate::kernels::built_in().into_iter();
    all.find(|kernel| kernel.name == name)
        .ok_or_else(|| BuildError::Failed(format!("there is no built-in kernel {name}")))
}

/// Maps what was passed for one run.
fn with_views(
    buffers: &[Source],
    descriptors: Vec<OwnedFd>,
    run: impl FnOnce(&mut [View<'_>]) -> Result<Timing, DeviceError>,
) -> Result<Timing, DeviceError> {
    let wrong = |why: &str| DeviceError::Failed(format!("an order is wrong: {why}"));
    // Each is mapped as far as it is used.
    let mut ends = vec![0_usize; descriptors.len()];
    let last = descriptors.len().wrapping_sub(1);
    let uses = buffers.iter().flat_map(|buffer| {
        let read = buffer
            .read
            .map(|(index, offset)| (index, offset, buffer.length));
        let write = buffer.write.map(|offset| (last, offset, buffer.length));
        read.into_iter().chain(write)
    });
    for (index, offset, length) in uses {
        let end = ends.get_mut(index).ok_or_else(|| wrong("no descriptor"))?;
        let to = offset
            .checked_add(length)
            .ok_or_else(|| wrong("no offset"))?;
        *end = (*end).max(to);
    }
    let mut regions = Vec::new();
    // Of what clients share nothing is written here, not even by a stray access of a driver or a kernel.
    let writes = buffers.iter().any(|buffer| buffer.write.is_some());
    for (index, (file, end)) in descriptors.into_iter().zip(ends).enumerate() {
        let mapped = if writes && index == last {
            Region::map(file, end)
        } else {
            Region::map_to_read(file, end)
        };
        regions.push(mapped.map_err(|why| wrong(&why))?);
    }
    let mut views = Vec::new();
    for buffer in buffers {
        let read = buffer.read.map(|(index, offset)| {
            // SAFETY: what this process is given to read it cannot write: it is mapped so. Memory that
            // is shared has no safe accessor.
            #[expect(unsafe_code, reason = "memory is shared by its addresses")]
            unsafe {
                regions[index].bytes(offset, buffer.length)
            }
        });
        let write = buffer.write.map(|offset| {
            // SAFETY: the last region is the broker's own, its parts were laid out not to overlap,
            // and the broker does not touch it until this process answers.
            #[expect(unsafe_code, reason = "memory is shared by its addresses")]
            unsafe {
                regions[last].bytes_mut(offset, buffer.length)
            }
        });
        views.push(match (read, write) {
            (Some(read), None) => View::Read(read),
            (None, Some(write)) => View::Write(write),
            (Some(read), Some(write)) => {
                write.copy_from_slice(read);
                View::ReadWrite(write)
            }
            (None, None) => return Err(wrong("a buffer is neither read nor written")),
        });
    }
    run(&mut views)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceInfo;
    use crate::memory::mapped_at;
    use crate::task::{Launch, Scalar};

    /// Tells with which rights its buffers are mapped.
    struct Looks(DeviceInfo);

    impl Device for Looks {
        fn info(&self) -> &DeviceInfo {
            &self.0
        }

        fn build(&mut self, _: &Kernel) -> Result<(), BuildError> {
            Ok(())
        }

        fn run(
            &mut self,
            _: &Kernel,
            buffers: &mut [View<'_>],
            _: &[Option<Constant>],
            _: &[Scalar],
            _: &[Launch],
        ) -> Result<Timing, DeviceError> {
            let places = buffers.iter().map(|view| view.bytes().as_ptr().addr());
            let rights: Vec<String> = places.map(|place| mapped_at(place).0).collect();
            Err(DeviceError::Failed(rights.join(" ")))
        }

        fn forget(&mut self, _: &[Constant]) {}
    }

    /// Whatever the descriptors of a client allow: a driver computes in this process.
    #[test]
    fn what_a_client_shares_cannot_be_written_by_the_process_of_a_device() {
        let (ours, theirs) = pair().unwrap();
        let serving = std::thread::spawn(move || {
            let info = DeviceInfo::of_a_test("looks");
            serve(&theirs, &mut Looks(info))
        });
        let client = Region::new(64).unwrap();
        let staging = Region::new(64).unwrap();
        let add = || "add".to_owned();
        let source = |read, write| Source {
            read,
            write,
            length: 16,
            keep: None,
        };
        let mut reader = Reader::default();
        let mut told = |buffers: Vec<Source>, regions: &[&Region]| {
            let order = Order::Run {
                name: add(),
                buffers,
                scalars: Vec::new(),
                launches: Vec::new(),
                forget: Vec::new(),
            };
            let files: Vec<_> = regions.iter().map(|region| region.as_fd()).collect();
            send(&ours, &order, &files).unwrap();
            loop {
                match reader.receive::<Report>(&ours).unwrap().unwrap().0 {
                    Report::Ran(Err(error)) => return error.to_string(),
                    Report::Ran(Ok(timing)) => panic!("{timing:?}"),
                    Report::Ready(_) | Report::Built(_) | Report::Unusable(_) => {}
                }
            }
        };
        let build = Order::Build {
            name: add(),
            definition: None,
        };
        send(&ours, &build, &[]).unwrap();
        let read = |offset| source(Some((0, offset)), None);
        let rights = told(
            vec![read(0), read(16), source(None, Some(0))],
            &[&client, &staging],
        );
        assert_eq!(rights, "r--s r--s rw-s");
        // Where the result begins with what is there, and where nothing is written.
        let rights = told(
            vec![source(Some((0, 32)), Some(16)), read(0)],
            &[&client, &staging],
        );
        assert_eq!(rights, "rw-s r--s");
        assert_eq!(told(vec![read(48)], &[&client]), "r--s");
        drop(ours);
        serving.join().unwrap().unwrap();
    }
}
