//! Hosts that share applications: two daemons that see each other through a real etcd.

use serde_json::Value;

use crate::place::{Place, eventually};

/// A daemon of a fleet, with one program.
fn member(place: &mut Place, name: &str, coordinator: &str) {
    place.configure(&format!(
        "[apps.{name}-web]\nclass = \"standard\"\nexec = [\"sleep\", \"{}\"]\nfloor = {{ cpu = \"0.5\" }}\n\
         [fleet]\nhost = \"{name}\"\nlease = \"5s\"\n{coordinator}",
        place.seconds(1)
    ));
    place.start();
    place.await_pid(&format!("{name}-web"));
}

/// A host as a daemon sees it.
fn seen(place: &Place, name: &str) -> Option<Value> {
    let output = place.ask(&["fleet", "hosts", "--json"]);
    if !output.status.success() {
        return None;
    }
    let hosts: Value = serde_json::from_slice(&output.stdout).unwrap();
    let hosts = hosts["hosts"].as_array().unwrap();
    hosts.iter().find(|host| host["host"] == name).cloned()
}

fn asked(place: &Place, arguments: &[&str]) -> String {
    let output = place.ask(arguments);
    assert!(output.status.success(), "{output:?}\n{}", place.log());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_host_without_etcd_is_a_fleet_of_its_own() {
    let Some(mut place) = Place::new("a_host_without_etcd_is_a_fleet_of_its_own") else {
        return;
    };
    member(&mut place, "solo", "");
    eventually("it is a member", || {
        seen(&place, "solo").is_some_and(|host| {
            host["apps"] == serde_json::json!(["solo-web"])
                && host["capacity"]["cpus"].as_f64() > Some(0.0)
                && host["needed"]["memory_bytes"].as_u64() > Some(0)
        })
    });
    let status = place.json(&["fleet", "status"]);
    assert!(
        status["coordinator"]
            .as_str()
            .unwrap()
            .starts_with("this host, in "),
        "{status}"
    );
    assert!(status["lease_seconds"].as_f64() > Some(0.0), "{status}");
    assert_eq!(status["lost"], Value::Null);
    let said = asked(&place, &["fleet", "cordon", "solo"]);
    assert_eq!(said, "solo takes no more applications\n");
    assert_eq!(seen(&place, "solo").unwrap()["cordoned"], true);
    place.fails(
        &["fleet", "cordon", "other"],
        5,
        &["no host `other`", "solo"],
    );
    // It is cordoned after a restart, too.
    place.stop_well();
    place.start();
    eventually("it is a member again", || {
        seen(&place, "solo").is_some_and(|host| host["cordoned"] == true)
    });
    let said = asked(&place, &["fleet", "uncordon", "solo"]);
    assert_eq!(said, "solo takes applications again\n");
    let status = asked(&place, &["status"]);
    assert!(
        status.contains("\nfleet        solo, a member for"),
        "{status}"
    );
    place.stop_well();
}

#[test]
fn a_host_that_is_alone_says_so() {
    let Some(mut place) = Place::new("a_host_that_is_alone_says_so") else {
        return;
    };
    place.configure("");
    place.start();
    place.fails(&["fleet", "hosts"], 5, &["this host is alone", "[fleet]"]);
    assert_eq!(place.json(&["status"])["fleet"], Value::Null);
    place.stop_well();
}

#[cfg(feature = "etcd")]
mod shared {
    use super::*;
    use crate::etcd::Etcd;

    fn pair(test: &str) -> Option<(Etcd, Place, Place)> {
        let mut a = Place::new(test)?;
        let mut b = Place::new(test)?;
        let etcd = Etcd::start(test)?;
        let coordinator = format!("[fleet.etcd]\nendpoints = [\"{}\"]\n", etcd.endpoint());
        member(&mut a, "a", &coordinator);
        member(&mut b, "b", &coordinator);
        Some((etcd, a, b))
    }

    #[test]
    fn two_daemons_see_each_other_and_one_that_is_killed_goes() {
        let test = "two_daemons_see_each_other_and_one_that_is_killed_goes";
        let Some((_etcd, mut a, mut b)) = pair(test) else {
            return;
        };
        for place in [&a, &b] {
            for name in ["a", "b"] {
                eventually("both are there", || {
                    let web = serde_json::json!([format!("{name}-web")]);
                    seen(place, name).is_some_and(|host| host["apps"] == web)
                });
            }
        }
        let said = asked(&a, &["fleet", "cordon", "b"]);
        assert_eq!(said, "b takes no more applications\n");
        assert_eq!(seen(&a, "b").unwrap()["cordoned"], true);
        assert_eq!(b.json(&["fleet", "status"])["cordoned"], true);
        assert_eq!(a.json(&["fleet", "status"])["cordoned"], false);
        asked(&a, &["fleet", "uncordon", "b"]);
        assert_eq!(seen(&a, "b").unwrap()["cordoned"], false);
        let table = asked(&a, &["fleet", "hosts"]);
        assert_eq!(table.lines().count(), 3, "{table}");
        b.crash();
        eventually("b is gone", || seen(&a, "b").is_none());
        assert!(seen(&a, "a").is_some());
        // The same agent comes back under its name.
        b.start();
        eventually("b is back", || seen(&a, "b").is_some());
        // Nothing that can move is b's, so that nobody has to wait for its lease.
        b.stop_well();
        assert!(seen(&a, "b").is_none());
        a.stop_well();
    }

    #[test]
    fn apps_go_on_without_etcd_and_it_comes_back_by_itself() {
        let test = "apps_go_on_without_etcd_and_it_comes_back_by_itself";
        let Some((mut etcd, mut a, mut b)) = pair(test) else {
            return;
        };
        eventually("both are there", || {
            seen(&a, "a").is_some() && seen(&b, "b").is_some()
        });
        let pid = a.await_pid("a-web");
        etcd.crash();
        eventually("the loss is said", || {
            a.json(&["fleet", "status"])["lost"].is_string()
        });
        let status = a.json(&["status"]);
        let fleet = &status["fleet"];
        assert!(fleet["lost_since_unix_ms"].is_u64(), "{fleet}");
        assert!(
            fleet["lost"].as_str().unwrap().contains(&etcd.endpoint()),
            "{fleet}"
        );
        let text = asked(&a, &["fleet", "status"]);
        assert!(text.contains("out of reach since 20"), "{text}");
        a.fails(
            &["fleet", "hosts"],
            1,
            &["list the hosts at etcd at", &etcd.endpoint()],
        );
        eventually("the lease runs out", || {
            a.json(&["fleet", "status"])["lease_seconds"].is_null()
        });
        assert_eq!(a.await_pid("a-web"), pid, "it goes on");
        etcd.restart();
        for place in [&a, &b] {
            eventually("it is in reach again", || {
                let fleet = place.json(&["fleet", "status"]);
                fleet["lost"].is_null() && fleet["lease_seconds"].is_number() && fleet["hosts"] == 2
            });
        }
        let events = a.json(&["events"]);
        let events = events["events"].as_array().unwrap();
        let fleet: Vec<&str> = events
            .iter()
            .filter(|event| event["kind"] == "fleet")
            .filter_map(|event| event["message"].as_str())
            .collect();
        assert!(
            fleet[0].starts_with("a is a member of the fleet at etcd at"),
            "{fleet:?}"
        );
        assert!(
            fleet[1].starts_with("the fleet is out of reach"),
            "{fleet:?}"
        );
        assert!(
            fleet
                .iter()
                .any(|what| what.starts_with("the fleet is in reach again")),
            "{fleet:?}"
        );
        a.stop_well();
        b.stop_well();
    }

    #[test]
    fn two_hosts_of_one_name_are_not_both_members() {
        let test = "two_hosts_of_one_name_are_not_both_members";
        let (Some(mut a), Some(mut b)) = (Place::new(test), Place::new(test)) else {
            return;
        };
        let Some(etcd) = Etcd::start(test) else {
            return;
        };
        let coordinator = format!("[fleet.etcd]\nendpoints = [\"{}\"]\n", etcd.endpoint());
        member(&mut a, "a", &coordinator);
        eventually("it is a member", || seen(&a, "a").is_some());
        member(&mut b, "a", &coordinator);
        eventually("the other one is none, and says why", || {
            let lost = &b.json(&["fleet", "status"])["lost"];
            lost.as_str()
                .is_some_and(|why| why.contains("another agent is a member as a"))
        });
        let hosts = seen(&b, "a").unwrap();
        assert_eq!(hosts["host"], "a");
        a.stop_well();
        eventually("the name is free", || {
            b.json(&["fleet", "status"])["lease_seconds"].is_number()
        });
        b.stop_well();
    }
}
