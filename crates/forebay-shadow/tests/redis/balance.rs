//! Reads that a shadow answers, between commands that only the primary may.

use forebay_shadow::redis::Options;

use super::harness::{Reply, has, pair, text};
use super::strict;

#[tokio::test]
async fn what_a_wait_for_others_took_is_confirmed_before_the_next_read_goes_elsewhere() {
    if !has(
        "what_a_wait_for_others_took_is_confirmed_before_the_next_read_goes_elsewhere",
        "redis-server",
    ) {
        return;
    }
    let options = Options {
        read_from_shadow: true,
        ..strict()
    };
    let (_servers, front) = pair(&[], options).await;
    let mut client = front.client().await;
    let mut other = front.client().await;
    assert_eq!(other.ask("SET a 1").await, text("OK"));
    for number in 0..10 {
        let ask = format!("BLPOP list 0\nGET a\nSET b {number}\nGET b");
        client.send(&ask).await.unwrap();
        assert_eq!(other.ask("RPUSH list x").await, Reply::Number(1));
        let popped = Reply::Many(vec![text("list"), text("x")]);
        assert_eq!(client.receive().await.unwrap(), popped);
        assert_eq!(client.receive().await.unwrap(), text("1"));
        assert_eq!(client.receive().await.unwrap(), text("OK"));
        assert_eq!(client.receive().await.unwrap(), text(&number.to_string()));
    }
}
