//! What the ledger knows of properties that managers were asked to change.

use std::collections::{BTreeMap, BTreeSet};

use forebay_core::app::AppId;
use serde::{Deserialize, Serialize};

use super::{Held, Kind, Object, Owner, Value, Values, owner};
use crate::error::HostError;
use crate::restore::Report;

/// Values of ours that are remembered for each property: the last, the one before, and what
/// the manager made of the last.
const WROTE_MAX: usize = 3;

/// One property of one thing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Spot {
    /// The thing.
    pub object: Object,
    /// The manager's name of the property.
    pub property: String,
}

/// What a property was before Forebay came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Original {
    /// What it held.
    pub value: Value,
    /// Whether the manager kept it because somebody had asked it to.
    #[serde(default)]
    pub kept: bool,
}

/// A line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// What a property holds before the manager is first asked to change it.
    Original {
        /// Whose.
        app: AppId,
        /// Where.
        spot: Spot,
        /// What.
        original: Original,
    },
    /// What the manager is about to be asked for, or what it made of that.
    Wrote {
        /// Where.
        spot: Spot,
        /// What.
        value: Value,
    },
    /// The app is another thing by now, and this one is as it was, or is there no more.
    Left {
        /// Whose it was.
        app: AppId,
        /// Which.
        object: Object,
    },
    /// All of an app's properties are as they were.
    Restored {
        /// Whose.
        app: AppId,
    },
}

/// Everything that is to be put back through managers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Book {
    originals: BTreeMap<AppId, BTreeMap<Spot, Original>>,
    wrote: BTreeMap<Spot, Vec<Value>>,
}

/// One property to put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) spot: Spot,
    original: Original,
    wrote: Vec<Value>,
}

impl Note {
    /// The app it makes known.
    pub(crate) const fn app(&self) -> Option<&AppId> {
        match self {
            Self::Original { app, .. } => Some(app),
            Self::Wrote { .. } | Self::Left { .. } | Self::Restored { .. } => None,
        }
    }
}

impl Book {
    pub(crate) fn take(&mut self, note: Note) {
        match note {
            Note::Original {
                app,
                spot,
                original,
            } => {
                // Before anything was written, the last look is the right one.
                if !self.wrote.contains_key(&spot) {
                    self.originals
                        .entry(app)
                        .or_default()
                        .insert(spot, original);
                }
            }
            Note::Wrote { spot, value } => {
                let values = self.wrote.entry(spot).or_default();
                values.retain(|known| *known != value);
                values.push(value);
                if values.len() > WROTE_MAX {
                    values.remove(0);
                }
            }
            Note::Left { app, object } => {
                if let Some(spots) = self.originals.get_mut(&app) {
                    spots.retain(|spot, _| spot.object != object);
                }
                self.wrote.retain(|spot, _| spot.object != object);
            }
            Note::Restored { app } => {
                for spot in self.originals.remove(&app).unwrap_or_default().keys() {
                    self.wrote.remove(spot);
                }
            }
        }
    }

    /// The fewest notes that give this book.
    pub(crate) fn notes(&self) -> Vec<Note> {
        let originals = self.originals.iter().flat_map(|(app, spots)| {
            spots.iter().map(|(spot, original)| Note::Original {
                app: app.clone(),
                spot: spot.clone(),
                original: original.clone(),
            })
        });
        let wrote = self.wrote.iter().flat_map(|(spot, values)| {
            values.iter().map(|value| Note::Wrote {
                spot: spot.clone(),
                value: value.clone(),
            })
        });
        originals.chain(wrote).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.originals.is_empty()
    }

    pub(crate) fn has(&self, app: &AppId) -> bool {
        self.originals.contains_key(app)
    }

    /// Whether anything was written to a property.
    pub(crate) fn is_written(&self, spot: &Spot) -> bool {
        self.wrote.contains_key(spot)
    }

    /// The values that mean that nobody else wrote a property: its original, and ours.
    pub(crate) fn mine(&self, app: &AppId, spot: &Spot) -> Vec<Value> {
        let original = self.originals.get(app).and_then(|spots| spots.get(spot));
        let original = original.map(|original| original.value.clone());
        let wrote = self.wrote.get(spot).cloned().unwrap_or_default();
        original.into_iter().chain(wrote).collect()
    }

    /// What a property held before it was first written.
    pub(crate) fn original(&self, app: &AppId, spot: &Spot) -> Option<&Value> {
        Some(&self.originals.get(app)?.get(spot)?.value)
    }

    /// What an app's properties held before Forebay came, where it asked for something else.
    pub(crate) fn originals(&self, app: &AppId) -> Values {
        let spots = self.originals.get(app).into_iter().flatten();
        let written = spots.filter(|(spot, _)| self.wrote.contains_key(spot));
        let values =
            written.map(|(spot, original)| (spot.property.clone(), original.value.clone()));
        values.collect()
    }

    /// The notes of what managers remember over a reboot.
    pub(crate) fn lasting(&self) -> Vec<Note> {
        let lasts = |spot: &Spot| spot.object.owner.outlives_boots();
        let mut notes = self.notes();
        notes.retain(|note| match note {
            Note::Original { spot, .. } | Note::Wrote { spot, .. } => lasts(spot),
            Note::Left { .. } | Note::Restored { .. } => false,
        });
        notes
    }

    /// What is to be put back of an app that was another thing than this one.
    pub(crate) fn entries_of_others(&self, app: &AppId, name: &str) -> Vec<Entry> {
        let mut entries = self.entries(app);
        entries.retain(|entry| entry.spot.object.name != name);
        entries
    }

    /// What is to be put back of an app.
    pub(crate) fn entries(&self, app: &AppId) -> Vec<Entry> {
        let spots = self.originals.get(app).into_iter().flatten();
        let entries = spots.map(|(spot, original)| Entry {
            spot: spot.clone(),
            original: original.clone(),
            wrote: self.wrote.get(spot).cloned().unwrap_or_default(),
        });
        entries.collect()
    }
}

/// Managers that were asked already, each at its address. One that is silent is waited for once and
/// not once for each of its things.
#[derive(Debug, Default)]
pub(crate) struct Managers {
    asked: BTreeMap<(Kind, String), Box<dyn Owner>>,
}

impl Managers {
    fn of(&mut self, object: &Object) -> &mut dyn Owner {
        let key = (object.owner, object.address.clone());
        let made = || owner(object.owner, &object.address);
        self.asked.entry(key).or_insert_with(made).as_mut()
    }
}

/// Has managers put properties back. Blocks until they have answered, in bounded time.
pub(crate) fn put_back(entries: &[Entry], managers: &mut Managers) -> Report {
    let objects: BTreeSet<&Object> = entries.iter().map(|entry| &entry.spot.object).collect();
    let mut report = Report::default();
    for object in objects {
        let of_object = |entry: &&Entry| entry.spot.object == *object;
        let entries: Vec<&Entry> = entries.iter().filter(of_object).collect();
        match put_one_back(object, &entries, managers.of(object), &mut report) {
            // Nothing is left of a thing that is there no more.
            Err(error) if error.is_gone() => {}
            Err(error) => report.failed.push(error.explain()),
            Ok(()) => {}
        }
    }
    report
}

fn put_one_back(
    object: &Object,
    entries: &[&Entry],
    owner: &mut dyn Owner,
    report: &mut Report,
) -> Result<(), HostError> {
    let name = &object.name;
    let held = match owner.look_up(name) {
        Err(error) if !error.is_gone() => {
            return put_back_behind(owner, entries, error, report);
        }
        other => other?,
    };
    let (values, ours) = compare(&held, entries, report);
    if !values.is_empty() {
        owner.write(name, &values)?;
    }
    report.knobs += ours.len();
    for entry in ours {
        let property = &entry.spot.property;
        if !entry.original.kept {
            owner.forget(name, property)?;
        }
    }
    Ok(())
}

/// What to write so that all that is ours holds its original, and what that is.
fn compare<'a>(
    held: &Held,
    entries: &[&'a Entry],
    report: &mut Report,
) -> (Values, Vec<&'a Entry>) {
    let mut values = Values::new();
    let mut ours = Vec::new();
    for entry in entries {
        let Entry {
            spot,
            original,
            wrote,
        } = entry;
        let Some(now) = held.values.get(&spot.property) else {
            continue;
        };
        let is_ours = |value: &Value| wrote.iter().any(|wrote| wrote.means(value));
        let told = held.told.get(&spot.property);
        // What it holds is back, and what it will hold again when it starts is not.
        let remembers = told.is_some_and(|told| !told.means(&original.value) && is_ours(told));
        if now.means(&original.value) && !remembers {
            ours.push(*entry);
        } else if is_ours(now) || now.means(&original.value) {
            values.insert(spot.property.clone(), back(&original.value, now));
            ours.push(*entry);
        } else {
            let Spot { object, property } = spot;
            report
                .foreign
                .push(format!("{property} of {object} = {now}"));
        }
    }
    (values, ours)
}

/// The manager is away: puts back what its thing's group holds. What the manager remembers is
/// not back with that, so it stays in the ledger until the manager can be asked.
fn put_back_behind(
    owner: &mut dyn Owner,
    entries: &[&Entry],
    away: HostError,
    report: &mut Report,
) -> Result<(), HostError> {
    let Some(object) = entries.first().map(|entry| &entry.spot.object) else {
        return Err(away);
    };
    let Some(held) = owner.behind(&object.name) else {
        return Err(away);
    };
    let (values, ours) = compare(&held, entries, report);
    owner.write_behind(&object.name, &values)?;
    Err(away.advise(format!(
        "{} value(s) of {object} were put back in its control group directly; run `forebay restore` \
         once its runtime answers, so that it forgets the others as well",
        ours.len()
    )))
}

/// What to write so that a property holds its original. Rates are told one by one, so those that
/// came since have to be taken back by name.
fn back(original: &Value, now: &Value) -> Value {
    match (original, now) {
        (Value::Rates(original), Value::Rates(now)) if *original != *now => {
            let mut rates = original.clone();
            if !original.is_empty() {
                let extra = now.keys().filter(|device| !original.contains_key(*device));
                rates.extend(extra.map(|device| (device.clone(), u64::MAX)));
            }
            Value::Rates(rates)
        }
        _ => original.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn spot(property: &str) -> Spot {
        Spot {
            object: Object {
                owner: Kind::Systemd,
                address: "unix:path=/nowhere".to_owned(),
                name: "web.service".to_owned(),
            },
            property: property.to_owned(),
        }
    }

    fn original(value: u64) -> Note {
        Note::Original {
            app: "web".parse().unwrap(),
            spot: spot("CPUWeight"),
            original: Original {
                value: Value::Number(value),
                kept: false,
            },
        }
    }

    fn wrote(value: u64) -> Note {
        Note::Wrote {
            spot: spot("CPUWeight"),
            value: Value::Number(value),
        }
    }

    #[test]
    fn the_last_look_before_the_first_write_is_the_original() {
        let mut book = Book::default();
        let web: AppId = "web".parse().unwrap();
        for note in [original(100), original(200), wrote(1), original(300)] {
            book.take(note);
        }
        let mine = [Value::Number(200), Value::Number(1)];
        assert_eq!(book.mine(&web, &spot("CPUWeight")), mine);
        for value in 2..9 {
            book.take(wrote(value));
        }
        let mine = [200, 6, 7, 8].map(Value::Number);
        assert_eq!(book.mine(&web, &spot("CPUWeight")), mine);
        let mut again = Book::default();
        book.notes().into_iter().for_each(|note| again.take(note));
        assert_eq!(again, book);
        again.take(Note::Restored { app: web });
        assert_eq!(again, Book::default());
    }

    #[test]
    fn rates_that_came_since_are_taken_back_by_name() {
        let rates = |rates: &[(&str, u64)]| {
            let rates = rates
                .iter()
                .map(|(device, rate)| ((*device).to_owned(), *rate));
            Value::Rates(rates.collect())
        };
        let check = |original: &[(&str, u64)], now: &[(&str, u64)], written: &[(&str, u64)]| {
            assert_eq!(back(&rates(original), &rates(now)), rates(written));
        };
        check(&[], &[("a", 1)], &[]);
        check(
            &[("b", 2)],
            &[("a", 1), ("b", 3)],
            &[("a", u64::MAX), ("b", 2)],
        );
        assert!(rates(&[("a", u64::MAX)]).means(&rates(&[])));
        assert!(!rates(&[("a", 1)]).means(&rates(&[])));
    }

    #[test]
    fn a_manager_that_is_away_leaves_everything_in_the_ledger() {
        let mut book = Book::default();
        book.take(original(100));
        book.take(wrote(1));
        let report = put_back(
            &book.entries(&"web".parse().unwrap()),
            &mut Managers::default(),
        );
        assert!(!report.is_complete());
        let said = report.failed.join("\n");
        assert!(
            said.contains("web.service") && said.contains("/nowhere"),
            "{said}"
        );
    }

    #[test]
    fn a_silent_manager_is_waited_for_once_and_not_for_each_of_its_things() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut managers = Managers::default();
        for app in ["web", "db"] {
            let mut spot = spot("PidsLimit");
            spot.object = Object {
                owner: Kind::Container,
                address: socket.display().to_string(),
                name: app.to_owned(),
            };
            let entry = Entry {
                spot,
                original: Original {
                    value: Value::Number(7),
                    kept: false,
                },
                wrote: Vec::new(),
            };
            let said = put_back(&[entry], &mut managers).failed.join("\n");
            assert!(said.contains("no answer"), "{said}");
        }
        listener.accept().unwrap();
        assert!(listener.accept().is_err(), "it was waited for again");
    }
}
