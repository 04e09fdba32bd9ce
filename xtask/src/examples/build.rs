//! The batch work: a build like a kernel's, of many short compiler processes.
//!
//! The sources are made here, of loops over arrays that the optimizer has to work on. Each is
//! compiled into many objects, so that the build outlasts every load.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SOURCES: usize = 250;
/// Objects for each processor: more than one compiles in a load's longest time.
const OBJECTS_PER_CPU: usize = 3000;
const FUNCTIONS_PER_SOURCE: usize = 8;
/// Compilers at a time for each processor.
const JOBS_PER_CPU: usize = 2;

pub(super) struct Build {
    dir: PathBuf,
    rounds: usize,
    jobs: usize,
}

impl Build {
    /// Writes the sources and the Makefile.
    pub(super) fn write(parent: &Path) -> Result<Self, String> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let build = Self {
            dir: parent.join("build"),
            rounds: (cpus * OBJECTS_PER_CPU).div_ceil(SOURCES),
            jobs: cpus * JOBS_PER_CPU,
        };
        let fail = |error| format!("write the build in {}: {error}", build.dir.display());
        fs::create_dir_all(build.dir.join("src")).map_err(fail)?;
        for number in 0..SOURCES {
            let path = build.dir.join(format!("src/unit{number}.c"));
            fs::write(path, source(number)).map_err(fail)?;
        }
        fs::write(build.dir.join("Makefile"), makefile(build.rounds)).map_err(fail)?;
        build.clear()?;
        Ok(build)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn command(&self) -> Vec<String> {
        vec!["make".into(), "--silent".into(), format!("-j{}", self.jobs)]
    }

    /// Removes what was built.
    pub(super) fn clear(&self) -> Result<(), String> {
        let objects = self.dir.join("obj");
        let fail = |error| format!("empty {}: {error}", objects.display());
        if objects.exists() {
            fs::remove_dir_all(&objects).map_err(fail)?;
        }
        for round in 1..=self.rounds {
            fs::create_dir_all(objects.join(round.to_string())).map_err(fail)?;
        }
        Ok(())
    }

    /// How many objects there are.
    pub(super) fn objects(&self) -> Result<usize, String> {
        let mut count = 0;
        for round in 1..=self.rounds {
            let directory = self.dir.join(format!("obj/{round}"));
            let entries = fs::read_dir(&directory)
                .map_err(|error| format!("list {}: {error}", directory.display()))?;
            count += entries.count();
        }
        Ok(count)
    }

    /// An error when the build was through before the load was.
    pub(super) fn must_last(&self, objects: usize) -> Result<(), String> {
        if objects < self.rounds * SOURCES {
            return Ok(());
        }
        Err(format!(
            "the build ended before the load, after {objects} objects; \
             raise OBJECTS_PER_CPU in xtask/src/examples/build.rs"
        ))
    }
}

pub(super) fn per_s(objects: usize, time: Duration) -> f64 {
    let objects = u32::try_from(objects).unwrap_or(u32::MAX);
    f64::from(objects) / time.as_secs_f64()
}

fn makefile(rounds: usize) -> String {
    let rounds: Vec<_> = (1..=rounds).map(|round| round.to_string()).collect();
    format!(
        "ROUNDS := {}\n\
         UNITS := $(notdir $(basename $(wildcard src/*.c)))\n\
         all: $(foreach round,$(ROUNDS),$(patsubst %,obj/$(round)/%.o,$(UNITS)))\n\
         obj/%.o:\n\
         \tgcc -O2 -c -o $@ src/$(notdir $*).c\n",
        rounds.join(" ")
    )
}

/// Functions that differ in their constants, so that none is the copy of another.
fn source(number: usize) -> String {
    let mut text = String::new();
    for function in 0..FUNCTIONS_PER_SOURCE {
        let (a, b, c) = (number + function + 3, 2 * function + 5, number % 7 + 2);
        let written = write!(
            text,
            "unsigned unit{number}_{function}(unsigned *x, unsigned n) {{\n\
             \x20 unsigned sum = {a}u, i, j;\n\
             \x20 for (i = 0; i < n; i++) {{\n\
             \x20   for (j = i; j < n; j += {c}u)\n\
             \x20     x[j] = (x[j] ^ x[i]) * {a}u + (sum >> {c}u);\n\
             \x20   switch ((x[i] + i) % {b}u) {{\n\
             \x20   case 0: sum += x[i] / {b}u; break;\n\
             \x20   case 1: sum ^= x[i] % {a}u; break;\n\
             \x20   case 2: sum = sum * {c}u + i; break;\n\
             \x20   default: sum -= x[(i * {b}u) % n];\n\
             \x20   }}\n\
             \x20 }}\n\
             \x20 return sum;\n\
             }}\n"
        );
        // A String takes all that memory holds.
        assert!(written.is_ok());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;
    use std::process::Command;

    #[test]
    fn make_builds_what_is_written() {
        let dir = std::env::temp_dir().join(format!("forebay-build-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let build = Build::write(&dir).unwrap();
        assert_eq!(build.objects().unwrap(), 0);
        let makes = process::find_program("make").and(process::find_program("gcc"));
        if makes.is_some() {
            let mut make = Command::new("make");
            make.args([
                "--silent",
                "obj/1/unit0.o",
                "obj/2/unit0.o",
                "obj/1/unit249.o",
            ]);
            process::succeed(make.current_dir(build.dir())).unwrap();
            assert_eq!(build.objects().unwrap(), 3);
        } else {
            println!("SKIPPED: make_builds_what_is_written: no make or gcc here");
        }
        build.clear().unwrap();
        assert_eq!(build.objects().unwrap(), 0);
        assert!(build.must_last(10).is_ok());
        assert!(build.must_last(build.rounds * SOURCES).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}
