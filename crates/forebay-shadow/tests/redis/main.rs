//! `redis` fronts with real servers.

mod harness;

use forebay_shadow::redis::{Guarantee, Options};
use harness::{Reply, Server, has, pair, text};
use rustix::process::Signal;

fn strict() -> Options {
    Options {
        guarantee: Guarantee::Strict,
        ..Options::default()
    }
}

/// The primary is killed, its shadow takes over, and it comes back as the shadow.
async fn kill(servers: &mut [Server], front: &harness::Front) {
    let before = front.ready().await;
    servers[before.primary].signal(Signal::KILL);
    let epoch = before.epoch;
    front
        .until("another primary", |status| {
            status.epoch > epoch && status.stage == "warm"
        })
        .await;
    servers[before.primary].restart();
    front.join(before.primary, &servers[before.primary]).await;
}

#[tokio::test]
async fn a_client_keeps_its_connection_and_what_it_made_of_it() {
    if !has(
        "a_client_keeps_its_connection_and_what_it_made_of_it",
        "redis-server",
    ) {
        return;
    }
    let (mut servers, front) = pair(&[], strict()).await;
    let mut client = front.client().await;
    assert_eq!(client.ask("SET a 1").await, text("OK"));
    assert!(matches!(client.ask("HELLO 3").await, Reply::Many(_)));
    assert_eq!(client.ask("SELECT 3").await, text("OK"));
    assert_eq!(client.ask("CLIENT SETNAME me").await, text("OK"));
    assert_eq!(client.ask("CLIENT TRACKING ON").await, text("OK"));
    assert_eq!(client.ask("SET b 2").await, text("OK"));
    let mut listener = front.client().await;
    assert!(matches!(
        listener.ask("SUBSCRIBE news").await,
        Reply::Many(_)
    ));
    kill(&mut servers, &front).await;
    assert_eq!(
        client.ask("GET b").await,
        Reply::Push(vec![text("invalidate"), Reply::Nothing])
    );
    assert_eq!(client.receive().await.unwrap(), text("2"));
    assert_eq!(client.ask("CLIENT GETNAME").await, text("me"));
    let Reply::Many(tracking) = client.ask("CLIENT TRACKINGINFO").await else {
        panic!()
    };
    assert_eq!(tracking[1], Reply::Many(vec![text("on")]));
    let heard = listener.receive();
    let told = async {
        let mut teller = front.client().await;
        while teller.ask("PUBLISH news x").await != Reply::Number(1) {
            front.ready().await;
        }
    };
    let (heard, ()) = tokio::join!(heard, told);
    assert_eq!(
        heard.unwrap(),
        Reply::Many(vec![text("message"), text("news"), text("x")])
    );
    assert_eq!(client.ask("SELECT 0").await, text("OK"));
    assert_eq!(client.ask("GET a").await, text("1"));
}
