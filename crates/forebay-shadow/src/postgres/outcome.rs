//! What becomes of requests whose server was lost before it answered.
//!
//! Problem: of a request that was sent and not answered, nobody knows whether it was carried out.
//!
//! Approach: what only reads, or changes nothing but the session, is sent again, and nothing else
//! is. A transaction that was not
//! committed is gone with its server, so a request within one has failed for certain. A COMMIT
//! alone has what [`Fate`] the status of its transaction says. All else is in doubt, and said to be.
//!
//! Properties: nothing that may have changed data is sent again; nothing that may have been
//! carried out is said to have failed.

use super::frame::ServerError;
use super::request::Request;
use super::sql::End;

/// What is known of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Committed,
    Aborted,
    Unknown,
}

/// What the front does about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It tells that nothing was done.
    Failed,
    /// It tells that nobody knows.
    Unknown,
    /// It has been told all but that the server is ready.
    Done,
    /// It lets the new server say what the old one would have said, in a new transaction.
    Commit,
    /// The same, in a failed transaction.
    Rollback,
}

/// The requests after another one, as far as its outcome depends on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Later {
    /// There are none.
    None,
    Some,
    /// The next one that ends the transaction may have committed it.
    Commits,
}

impl Later {
    pub(crate) fn of(later: &[Request<'_>]) -> Self {
        let end = later.iter().find_map(|request| request.class.ends);
        match end {
            Some(End::Commit | End::Among) => Self::Commits,
            Some(End::Rollback) => Self::Some,
            None if later.is_empty() => Self::None,
            None => Self::Some,
        }
    }
}

/// What becomes of a request, and the transaction status after it.
pub(crate) fn outcome(
    request: &Request<'_>,
    status: u8,
    fate: Fate,
    later: Later,
) -> (Outcome, u8) {
    let class = &request.class;
    let within = status != b'I';
    if request.failed {
        return (
            Outcome::Done,
            if within && class.ends.is_none() {
                b'E'
            } else {
                b'I'
            },
        );
    }
    if !within {
        // All statements of a text are one transaction, which is committed before the server says
        // that the last of them is complete.
        let committed = !request.is_batch && class.statements == Some(request.completed);
        let outcome = if committed {
            Outcome::Done
        } else if class.reads || class.begins {
            Outcome::Failed
        } else {
            Outcome::Unknown
        };
        return (outcome, b'I');
    }
    let repeatable =
        later == Later::None && request.is_whole && !request.answered && request.copy.is_some();
    match class.ends {
        // It is in the transaction that a later request may have committed.
        None if status == b'T' && later == Later::Commits && fate != Fate::Aborted => {
            (Outcome::Unknown, b'T')
        }
        None => (Outcome::Failed, b'E'),
        Some(End::Rollback) if repeatable => (Outcome::Rollback, b'I'),
        Some(End::Rollback) => (Outcome::Failed, b'I'),
        // In a transaction that has failed already, COMMIT is another word for ROLLBACK.
        Some(End::Commit) if status == b'E' && repeatable => (Outcome::Rollback, b'I'),
        Some(End::Commit) if status == b'E' => (Outcome::Failed, b'I'),
        Some(End::Commit) => match fate {
            Fate::Committed if repeatable => (Outcome::Commit, b'I'),
            Fate::Aborted => (Outcome::Failed, b'I'),
            Fate::Committed | Fate::Unknown => (Outcome::Unknown, b'I'),
        },
        Some(End::Among) => (Outcome::Unknown, b'I'),
    }
}

pub(crate) fn failed() -> ServerError {
    ServerError {
        severity: "ERROR",
        code: "40001",
        message: "the primary was lost; nothing of this was carried out, try again".to_owned(),
        detail: None,
    }
}

pub(crate) fn unknown() -> ServerError {
    ServerError {
        severity: "ERROR",
        code: "08007",
        message:
            "the primary was lost before it answered; whether this was carried out is not known"
                .to_owned(),
        detail: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flights::Flights;
    use crate::postgres::sql::classify;

    #[test]
    fn each_case_has_its_outcome() {
        let flights = Flights::default();
        let check = |sql: &str, status, fate, expected| {
            let mut request = Request::single(flights.begin(0, 0), classify(sql.as_bytes()));
            request.keep(sql.as_bytes());
            assert_eq!(
                outcome(&request, status, fate, Later::None),
                expected,
                "{sql}"
            );
        };
        let unknown = Fate::Unknown;
        check("select 1", b'I', unknown, (Outcome::Failed, b'I'));
        check(
            "insert into t values (1)",
            b'I',
            unknown,
            (Outcome::Unknown, b'I'),
        );
        check("begin", b'I', unknown, (Outcome::Failed, b'I'));
        check(
            "begin; select 1; commit",
            b'I',
            unknown,
            (Outcome::Unknown, b'I'),
        );
        check(
            "insert into t values (1)",
            b'T',
            unknown,
            (Outcome::Failed, b'E'),
        );
        check("select 1", b'T', unknown, (Outcome::Failed, b'E'));
        check("commit", b'T', Fate::Committed, (Outcome::Commit, b'I'));
        check("commit", b'T', Fate::Aborted, (Outcome::Failed, b'I'));
        check("commit", b'T', unknown, (Outcome::Unknown, b'I'));
        check("commit", b'E', unknown, (Outcome::Rollback, b'I'));
        check("rollback", b'T', unknown, (Outcome::Rollback, b'I'));
        check(
            "commit and chain",
            b'T',
            Fate::Committed,
            (Outcome::Unknown, b'I'),
        );
        check(
            "insert into t values (1); commit",
            b'T',
            Fate::Aborted,
            (Outcome::Unknown, b'I'),
        );
    }

    #[test]
    fn what_was_told_is_not_told_again() {
        let flights = Flights::default();
        let mut request =
            Request::single(flights.begin(0, 0), classify(b"insert into t values (1)"));
        request.answered = true;
        request.completed = 1;
        assert_eq!(
            outcome(&request, b'I', Fate::Unknown, Later::None),
            (Outcome::Done, b'I')
        );
        request.fail();
        assert_eq!(
            outcome(&request, b'T', Fate::Unknown, Later::None),
            (Outcome::Done, b'E')
        );
        // Within a batch, what is complete is not committed.
        let mut batch = Request::batch(flights.begin(0, 0));
        batch.bind(classify(b"insert into t values (1)"));
        batch.execute();
        batch.completed = 1;
        assert_eq!(
            outcome(&batch, b'I', Fate::Unknown, Later::None),
            (Outcome::Unknown, b'I')
        );
    }

    #[test]
    fn what_a_later_request_may_have_committed_has_not_failed() {
        let flights = Flights::default();
        let requests = |texts: &[&str]| -> Vec<Request<'_>> {
            let request = |sql: &&str| {
                let mut request = Request::single(flights.begin(0, 0), classify(sql.as_bytes()));
                request.keep(sql.as_bytes());
                request
            };
            texts.iter().map(request).collect()
        };
        let check = |texts: &[&str], status, fate, expected: &[Outcome]| {
            let requests = requests(texts);
            let mut status = status;
            let mut outcomes = Vec::new();
            for (at, request) in requests.iter().enumerate() {
                let later = Later::of(&requests[at + 1..]);
                let (outcome, after) = outcome(request, status, fate, later);
                status = after;
                outcomes.push(outcome);
            }
            assert_eq!(outcomes, expected, "{texts:?}");
        };
        let commits = ["insert into t values (1)", "commit"];
        let (unknown, failed) = (Outcome::Unknown, Outcome::Failed);
        check(&commits, b'T', Fate::Unknown, &[unknown, unknown]);
        check(&commits, b'T', Fate::Committed, &[unknown, Outcome::Commit]);
        check(&commits, b'T', Fate::Aborted, &[failed, Outcome::Rollback]);
        check(&commits, b'E', Fate::Unknown, &[failed, Outcome::Rollback]);
        check(
            &["insert into t values (1)", "rollback", "commit"],
            b'T',
            Fate::Unknown,
            &[failed, failed, unknown],
        );
        check(
            &["insert into t values (1)", "select 1"],
            b'T',
            Fate::Unknown,
            &[failed, failed],
        );
    }

    #[test]
    fn a_text_is_done_once_its_last_statement_is() {
        let flights = Flights::default();
        let check = |sql: &str, completed, expected| {
            let mut request = Request::single(flights.begin(0, 0), classify(sql.as_bytes()));
            request.answered = true;
            request.completed = completed;
            let (outcome, _) = outcome(&request, b'I', Fate::Unknown, Later::None);
            assert_eq!(outcome, expected, "{completed} of {sql}");
        };
        let two = "insert into t values (1); update t set a = 2";
        check(two, 0, Outcome::Unknown);
        check(two, 1, Outcome::Unknown);
        check(two, 2, Outcome::Done);
        // Its transaction is lost.
        check("begin; insert into t values (1)", 2, Outcome::Unknown);
        check("", 0, Outcome::Unknown);
    }

    #[test]
    fn a_batch_is_as_its_statements() {
        let flights = Flights::default();
        let batch = |texts: &[&str]| {
            let mut batch = Request::batch(flights.begin(0, 0));
            for text in texts {
                batch.bind(classify(text.as_bytes()));
                batch.execute();
            }
            batch
        };
        assert!(batch(&[]).may_be_repeated());
        assert!(batch(&["select 1", "select 2"]).may_be_repeated());
        assert!(batch(&["begin"]).may_be_repeated());
        assert!(!batch(&["begin", "insert into t values (1)"]).may_be_repeated());
        assert!(!batch(&["select 1", "insert into t values (1)"]).may_be_repeated());
        assert_eq!(batch(&["commit"]).class.ends, Some(End::Commit));
        assert_eq!(batch(&["select 1", "commit"]).class.ends, Some(End::Among));
        let mut unbound = batch(&[]);
        unbound.execute();
        assert!(!unbound.may_be_repeated(), "a portal of an earlier batch");
    }
}
