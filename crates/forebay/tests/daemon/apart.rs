//! Apps that share no host, on three hosts with a real etcd.

use crate::moves::{Fleet, status};
use crate::place::eventually;

#[test]
fn an_app_does_not_come_to_where_one_is_that_it_shares_no_host_with() {
    let names = ["a", "b", "c"];
    let twin = |place: &crate::place::Place| {
        format!(
            "[apps.twin]\nexec = [\"/bin/sleep\", \"{}\"]\n\
             move = {{ mode = \"restart\", apart = [\"counts\"] }}\n",
            place.seconds(2)
        )
    };
    let Some(fleet) = Fleet::start_with("apps that share no host", &names, twin) else {
        return;
    };
    let owner = |app: &str| {
        let owns = |host: &&str| {
            let owns = &status(fleet.place(host))["owns"];
            owns.as_array().unwrap().contains(&app.into())
        };
        let owners: Vec<&str> = names.into_iter().filter(owns).collect();
        (owners.len() == 1).then(|| owners[0])
    };
    eventually("both are somebody's", || {
        owner("twin").is_some() && owner("counts").is_some()
    });
    let home = owner("counts").unwrap();
    fleet.await_owner(home);
    let others: Vec<&str> = names.into_iter().filter(|host| *host != home).collect();
    let (beside, free) = (others[0], others[1]);
    // The first to start had both, or not.
    let at = owner("twin").unwrap();
    if at != beside {
        let moved = fleet.place(at).json(&["move", "twin", "--to", beside]);
        assert_eq!(moved["stage"], "moved", "{moved}");
    }
    let words = [
        format!("twin is on {beside}"),
        "counts shares no host with it".to_owned(),
    ];
    let words = [words[0].as_str(), words[1].as_str()];
    let ask = ["move", "counts", "--to", beside];
    fleet.place(home).fails(&ask, 1, &words);
    // Whoever names nobody hears of it as well.
    fleet.place(home).ask_fleet(&["cordon", free]);
    eventually("nobody takes it", || {
        let ask = ["move", "counts", "--to", "auto", "--dry-run"];
        let asked = fleet.place(home).ask(&ask);
        let said = String::from_utf8_lossy(&asked.stderr).into_owned();
        !asked.status.success() && words.iter().all(|word| said.contains(word))
    });
    assert_eq!(owner("counts"), Some(home));
    fleet.place(home).ask_fleet(&["uncordon", free]);
    let ask = ["fleet", "move", "counts", "--to", free];
    let moved = fleet.place(home).json(&ask);
    assert_eq!(moved["stage"], "moved", "{moved}");
    fleet.await_owner(free);
    fleet.await_rest();
    // The one that named nobody is kept apart as well as the one that did.
    let words = [
        &*format!("counts is on {free}"),
        "twin shares no host with it",
    ];
    let ask = ["move", "twin", "--to", free];
    fleet.place(beside).fails(&ask, 1, &words);
    fleet.witnessed();
}
