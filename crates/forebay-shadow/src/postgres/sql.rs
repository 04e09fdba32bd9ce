//! What a text of SQL may do, as far as a text can tell.
//!
//! Problem: whether a query may be sent a second time, ends a transaction or changes the session
//! has to be known before it is sent, and the server tells only afterwards.
//!
//! Approach: words, strings and punctuation are told apart as the server's scanner does
//! (scan.l), and the first word of each statement and the functions that are called decide. Nothing
//! is understood beyond that: what a function or a trigger of a user does is not in the text. Where
//! `standard_conforming_strings` is or may be off, a text is read both ways, and is not understood
//! unless both come to the same.
//!
//! Properties: only what is known to change nothing reads; every other text writes, and one that is
//! not understood may end its transaction as well. What the text
//! says of the session is a reason to ask the server how it stands, and never the answer.

/// How a text ends the transaction that it runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// By one COMMIT, and nothing else.
    Commit,
    /// By one ROLLBACK, and nothing else.
    Rollback,
    /// Among other statements, or by one that begins the next transaction.
    Among,
}

/// What a text may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Class {
    /// Nothing but reading, so that it may be sent again.
    pub(crate) reads: bool,
    /// How many statements of it the server says are complete before all of it has been carried out
    /// for good; none where that is not known, or a transaction goes on after it.
    pub(crate) statements: Option<u32>,
    /// To ask for the number of its transaction after it is of no use: it gives none, or ends it.
    pub(crate) unnumbered: bool,
    /// Nothing but beginning a transaction.
    pub(crate) begins: bool,
    /// It ends one.
    pub(crate) ends: Option<End>,
    /// The session may differ afterwards.
    pub(crate) changes_session: bool,
    /// In a way that stays if its transaction is rolled back.
    pub(crate) lasting: bool,
    /// Nothing but that, so that it may be carried out in the next session again.
    pub(crate) is_of_session: bool,
    /// Settings that exist in this session alone, which the server does not list.
    pub(crate) settings: Vec<String>,
    /// It sets some whose name is not in the text.
    pub(crate) hidden_setting: bool,
}

impl Class {
    /// Of what is not known: it may do anything.
    pub(crate) fn unknown() -> Self {
        Self {
            ends: Some(End::Among),
            ..Self::of_unknown_portal()
        }
    }

    /// Of what is not known, and runs in its transaction without ending it: a portal of an earlier
    /// batch, or a function that is called alone.
    pub(crate) fn of_unknown_portal() -> Self {
        Self {
            changes_session: true,
            lasting: true,
            ..Self::default()
        }
    }

    /// Bytes that it takes beside itself.
    pub(crate) fn bytes(&self) -> usize {
        self.settings.iter().map(String::len).sum()
    }
}

/// What a backslash within plain quotes is (`standard_conforming_strings`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backslash {
    Plain,
    Escapes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a [u8]),
    Quoted(&'a [u8]),
    Text(&'a [u8]),
    Sign(u8),
}

impl Token<'_> {
    fn is(&self, word: &str) -> bool {
        matches!(self, Self::Word(found) if found.eq_ignore_ascii_case(word.as_bytes()))
    }

    fn is_one_of(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.is(word))
    }

    /// The name that it is, as the server folds it.
    fn name(&self) -> Option<String> {
        match self {
            Self::Word(word) => Some(String::from_utf8_lossy(word).to_ascii_lowercase()),
            Self::Quoted(name) => Some(String::from_utf8_lossy(name).replace("\"\"", "\"")),
            Self::Text(_) | Self::Sign(_) => None,
        }
    }
}

/// A statement: its tokens, and where it is in the text.
type Statement<'a> = (Vec<Token<'a>>, &'a [u8]);

/// What a text may do, where a backslash within plain quotes is one.
pub(crate) fn classify(sql: &[u8]) -> Class {
    classify_as(sql, Backslash::Plain)
}

/// What a text may do, where nobody knows what a backslash is.
pub(crate) fn classify_unsure(sql: &[u8]) -> Class {
    let class = classify(sql);
    if !sql.contains(&b'\\') || class == classify_as(sql, Backslash::Escapes) {
        class
    } else {
        Class::unknown()
    }
}

fn classify_as(sql: &[u8], backslash: Backslash) -> Class {
    let statements = statements(sql, backslash);
    let mut class = Class {
        reads: !statements.is_empty(),
        unnumbered: true,
        statements: u32::try_from(statements.len())
            .ok()
            .filter(|count| *count > 0),
        begins: statements.len() == 1,
        is_of_session: !statements.is_empty(),
        ..Class::default()
    };
    for (tokens, _) in &statements {
        let reads = reads(tokens);
        class.reads &= reads;
        class.unnumbered &= reads || is_unnumbered(tokens);
        class.begins &= begins(tokens);
        if begins(tokens) {
            class.statements = None;
        }
        class.is_of_session &= is_of_session(tokens);
        class.changes_session |= changes_session(tokens);
        class.lasting |= is_lasting(tokens);
        note_settings(tokens, &mut class);
        if let Some(end) = ends(tokens) {
            let alone = statements.len() == 1;
            class.ends = Some(if alone { end } else { End::Among });
        }
    }
    class
}

/// The statement within a text that prepares another one under a name; none where that depends on
/// what a backslash was when it was read.
pub(crate) fn preparation<'a>(sql: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let find = |backslash| {
        let found = statements(sql, backslash).into_iter().find(|(tokens, _)| {
            tokens.first().is_some_and(|first| first.is("prepare"))
                && tokens.get(1).and_then(Token::name).as_deref() == Some(name)
        });
        found.map(|(_, text)| text)
    };
    find(Backslash::Plain).filter(|found| Some(*found) == find(Backslash::Escapes))
}

fn begins(tokens: &[Token<'_>]) -> bool {
    match tokens {
        [first, ..] if first.is("begin") => true,
        [first, second, ..] => first.is("start") && second.is("transaction"),
        _ => false,
    }
}

fn is_of_session(tokens: &[Token<'_>]) -> bool {
    let (Some(first), second) = (tokens.first(), tokens.get(1)) else {
        return false;
    };
    first.is_one_of(&["set", "reset", "listen", "unlisten", "deallocate"])
        || first.is("prepare") && !second.is_some_and(|second| second.is("transaction"))
}

/// It leaves its transaction without a number, as a rule, though it does more than read. Some of these
/// come before the snapshot of a transaction, and a question would take that too early.
fn is_unnumbered(tokens: &[Token<'_>]) -> bool {
    let (Some(first), second) = (tokens.first(), tokens.get(1)) else {
        return true;
    };
    let prepares = first.is("prepare") && second.is_some_and(|second| second.is("transaction"));
    let analyzes = first.is("explain") && tokens.iter().any(|token| token.is("analyze"));
    begins(tokens)
        || ends(tokens).is_some()
        || first.is_one_of(&UNNUMBERED) && !prepares && !analyzes
}

const UNNUMBERED: [&str; 18] = [
    "set",
    "reset",
    "show",
    "savepoint",
    "release",
    "rollback",
    "lock",
    "fetch",
    "move",
    "declare",
    "close",
    "explain",
    "prepare",
    "deallocate",
    "discard",
    "listen",
    "unlisten",
    "load",
];

fn ends(tokens: &[Token<'_>]) -> Option<End> {
    let (first, rest) = tokens.split_first()?;
    let chains =
        rest.iter().any(|token| token.is("chain")) && !rest.iter().any(|token| token.is("no"));
    let has = |word| rest.iter().any(|token| token.is(word));
    if first.is_one_of(&["commit", "end"]) && !has("prepared") {
        return Some(if chains { End::Among } else { End::Commit });
    }
    if first.is_one_of(&["rollback", "abort"]) && !has("prepared") && !has("to") {
        return Some(if chains { End::Among } else { End::Rollback });
    }
    let prepares = first.is("prepare") && rest.first().is_some_and(|token| token.is("transaction"));
    prepares.then_some(End::Among)
}

fn reads(tokens: &[Token<'_>]) -> bool {
    let Some(first) = tokens.iter().find(|token| **token != Token::Sign(b'(')) else {
        return false;
    };
    if first.is("show") {
        return true;
    }
    if !first.is_one_of(&["select", "values", "table"]) {
        return false;
    }
    let locks = |pair: &[Token<'_>]| match pair {
        [one, other] => one.is("for") && other.is_one_of(&["update", "no", "share", "key"]),
        _ => false,
    };
    let writes = ["into", "insert", "update", "delete", "merge"];
    !tokens.windows(2).any(locks)
        && !tokens.iter().any(|token| token.is_one_of(&writes))
        && calls(tokens).all(|call| call.is_known())
}

/// A function that is called.
struct Call<'a, 'b> {
    schema: Option<&'b Token<'a>>,
    name: &'b Token<'a>,
    arguments: &'b [Token<'a>],
}

fn calls<'a, 'b>(tokens: &'b [Token<'a>]) -> impl Iterator<Item = Call<'a, 'b>> {
    let open = tokens.iter().enumerate();
    open.filter(|(_, token)| **token == Token::Sign(b'('))
        .filter_map(|(at, _)| {
            let name = tokens.get(at.checked_sub(1)?)?;
            let qualified = at
                .checked_sub(2)
                .and_then(|at| tokens.get(at))
                .is_some_and(|token| *token == Token::Sign(b'.'));
            let schema = at.checked_sub(3).and_then(|at| tokens.get(at));
            matches!(name, Token::Word(_) | Token::Quoted(_)).then(|| Call {
                schema: schema.filter(|_| qualified),
                name,
                arguments: tokens.get(at + 1..).unwrap_or_default(),
            })
        })
}

impl Call<'_, '_> {
    fn is_known(&self) -> bool {
        let Some(name) = self.name.name() else {
            return false;
        };
        self.schema.is_none_or(|schema| schema.is("pg_catalog"))
            && (HARMLESS.split(' ').any(|harmless| harmless == name)
                || HARMLESS_BEGINNINGS
                    .iter()
                    .any(|beginning| name.starts_with(beginning)))
    }
}

/// Words before a parenthesis that call nothing, and functions that change nothing.
const HARMLESS: &str = "\
    abs age all and any array array_agg array_length array_to_string as avg between bool_and \
    bool_or by case cast ceil char char_length clock_timestamp coalesce col_description concat \
    concat_ws count cube current_database current_schema current_schemas current_setting date \
    date_part date_trunc dense_rank distinct else except exists extract filter first_value \
    floor format format_type from generate_series greatest grouping having if in intersect is \
    join json_agg jsonb_agg lag last_value lateral lead least left length like limit lower \
    ltrim max md5 min mod not now nullif numeric obj_description offset on or over overlay \
    position power quote_ident quote_literal rank replace right round row row_number rtrim \
    select sets some split_part sqrt string_agg strpos substring sum then to_char trim union \
    unnest upper using values varchar when where";
const HARMLESS_BEGINNINGS: [&str; 7] = [
    "pg_get_",
    "has_",
    "pg_is_",
    "pg_sleep",
    "pg_size_",
    "pg_table_",
    "pg_backend_pid",
];

fn changes_session(tokens: &[Token<'_>]) -> bool {
    let Some((first, rest)) = tokens.split_first() else {
        return false;
    };
    let second = rest.first();
    let changes = if first.is("set") {
        !second.is_some_and(|token| token.is_one_of(&["local", "transaction", "constraints"]))
    } else if first.is("prepare") {
        !second.is_some_and(|token| token.is("transaction"))
    } else {
        first.is_one_of(&[
            "reset",
            "discard",
            "listen",
            "unlisten",
            "deallocate",
            "declare",
            "close",
            "load",
            "do",
            "call",
            "drop",
        ])
    };
    let temporary = ["temp", "temporary", "pg_temp"];
    changes
        || (first.is("create") || rest.iter().any(|token| token.is("into")))
            && rest.iter().take(8).any(|token| token.is_one_of(&temporary))
        || rest.iter().any(|token| token.is("pg_temp"))
        || calls(tokens).any(|call| {
            call.name.name().is_some_and(|name| {
                name == "set_config"
                    || name.contains("advisory_lock")
                    || name.contains("advisory_unlock")
            })
        })
}

/// Prepared statements and advisory locks of a session outlive a transaction that is rolled back,
/// and so may what a function or a procedure did.
fn is_lasting(tokens: &[Token<'_>]) -> bool {
    let prepares = tokens
        .first()
        .is_some_and(|first| first.is_one_of(&["prepare", "deallocate", "load", "do", "call"]))
        && changes_session(tokens);
    prepares
        || calls(tokens).any(|call| {
            call.name
                .name()
                .is_some_and(|name| name.contains("advisory"))
        })
}

fn note_settings(tokens: &[Token<'_>], class: &mut Class) {
    let after = match tokens {
        [first, second, rest @ ..] if first.is("set") && second.is("session") => rest,
        [first, rest @ ..] if first.is("set") => rest,
        _ => &[],
    };
    if let [one, Token::Sign(b'.'), other, ..] = after
        && let (Some(one), Some(other)) = (one.name(), other.name())
    {
        class.settings.push(format!("{one}.{other}"));
    }
    for call in calls(tokens).filter(|call| call.name.is("set_config")) {
        match call.arguments.first() {
            Some(Token::Text(name)) => {
                let name = String::from_utf8_lossy(name).to_ascii_lowercase();
                // The others are listed.
                if name.contains('.') {
                    class.settings.push(name);
                }
            }
            _ => class.hidden_setting = true,
        }
    }
}

fn statements(sql: &[u8], backslash: Backslash) -> Vec<Statement<'_>> {
    let mut found = Vec::new();
    let mut tokens = Vec::new();
    let mut at = 0;
    let mut begin = 0;
    while let Some((token, from, to)) = token(sql, at, backslash) {
        at = to;
        if token == Token::Sign(b';') {
            let text = sql.get(begin..from).unwrap_or_default();
            if !tokens.is_empty() {
                found.push((std::mem::take(&mut tokens), text));
            }
            begin = to;
        } else {
            tokens.push(token);
        }
    }
    if !tokens.is_empty() {
        found.push((tokens, sql.get(begin..).unwrap_or_default()));
    }
    found
}

/// The next token from a place on, with where it begins and ends.
fn token(sql: &[u8], from: usize, backslash: Backslash) -> Option<(Token<'_>, usize, usize)> {
    let from = blank(sql, from);
    let first = *sql.get(from)?;
    let slice = |begin, end| sql.get(begin..end).unwrap_or_default();
    match first {
        b'\'' => {
            let end = quoted(sql, from + 1, b'\'', backslash);
            Some((Token::Text(slice(from + 1, end)), from, end + 1))
        }
        b'"' => {
            let end = quoted(sql, from + 1, b'"', Backslash::Plain);
            Some((Token::Quoted(slice(from + 1, end)), from, end + 1))
        }
        b'e' | b'E' if sql.get(from + 1) == Some(&b'\'') => {
            let end = quoted(sql, from + 2, b'\'', Backslash::Escapes);
            Some((Token::Text(slice(from + 2, end)), from, end + 1))
        }
        b'$' => Some(dollar(sql, from)),
        _ if is_word(first) => {
            let rest = sql.get(from..)?;
            let length = rest
                .iter()
                .take_while(|byte| is_word(**byte) || **byte == b'$');
            let end = from + length.count();
            Some((Token::Word(slice(from, end)), from, end))
        }
        sign => Some((Token::Sign(sign), from, from + 1)),
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// Where something begins that is neither space nor comment.
fn blank(sql: &[u8], mut at: usize) -> usize {
    loop {
        match (sql.get(at), sql.get(at + 1)) {
            (Some(byte), _) if byte.is_ascii_whitespace() || *byte == 0x0b => at += 1,
            (Some(b'-'), Some(b'-')) => {
                let rest = sql.get(at..).unwrap_or_default();
                let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
                at = end.map_or(sql.len(), |end| at + end);
            }
            (Some(b'/'), Some(b'*')) => at = comment(sql, at + 2),
            _ => return at,
        }
    }
}

/// Where a comment ends; they nest.
fn comment(sql: &[u8], mut at: usize) -> usize {
    let mut depth = 1_usize;
    while depth > 0 {
        match (sql.get(at), sql.get(at + 1)) {
            (Some(b'/'), Some(b'*')) => {
                depth += 1;
                at += 2;
            }
            (Some(b'*'), Some(b'/')) => {
                depth -= 1;
                at += 2;
            }
            (Some(_), _) => at += 1,
            (None, _) => return sql.len(),
        }
    }
    at
}

/// Where the closing quote of a text is.
fn quoted(sql: &[u8], mut at: usize, quote: u8, backslash: Backslash) -> usize {
    loop {
        match sql.get(at) {
            None => return sql.len(),
            Some(b'\\') if backslash == Backslash::Escapes => at += 2,
            Some(byte) if *byte == quote => {
                if sql.get(at + 1) != Some(&quote) {
                    return at;
                }
                at += 2;
            }
            Some(_) => at += 1,
        }
    }
}

/// `$tag$ ... $tag$`, or a parameter.
fn dollar(sql: &[u8], from: usize) -> (Token<'_>, usize, usize) {
    let rest = sql.get(from + 1..).unwrap_or_default();
    let tag = rest.iter().take_while(|byte| is_word(**byte)).count();
    let parameter = rest.first().is_some_and(u8::is_ascii_digit);
    if parameter || rest.get(tag) != Some(&b'$') {
        return (Token::Sign(b'$'), from, from + 1 + tag);
    }
    let fence = sql.get(from..from + tag + 2).unwrap_or_default();
    let begin = from + fence.len();
    let body = sql.get(begin..).unwrap_or_default();
    let length = body
        .windows(fence.len())
        .position(|window| window == fence)
        .unwrap_or(body.len());
    let text = body.get(..length).unwrap_or_default();
    (
        Token::Text(text),
        from,
        (begin + length + fence.len()).min(sql.len()),
    )
}

/// A name as SQL takes it.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as SQL takes it, whatever `standard_conforming_strings` is.
pub(crate) fn literal(text: &str) -> String {
    let text = text.replace('\'', "''").replace('\\', "\\\\");
    format!(" E'{text}'")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_what_is_known_to_read_reads() {
        let check = |sql: &str, expected| {
            assert_eq!(classify(sql.as_bytes()).reads, expected, "{sql}");
        };
        check("SELECT 1", true);
        check(
            " -- a\n /* b /* c */ */ select a from t where b in (1, 2);",
            true,
        );
        check("(select 1) union (select 2)", true);
        check("SELECT abalance FROM pgbench_accounts WHERE aid = $1", true);
        check("table t", true);
        check("values (1), (2)", true);
        check("show all; select 1", true);
        check("select pg_catalog.pg_get_userbyid(1)", true);
        check("select 'for update', \"into\" from t", true);
        check("select $$ nextval('x') $$, $a$ $$ $a$", true);
        check("select E'\\' nextval(1)'", true);
        check("select nextval('s')", false);
        check("select my.count(*)", false);
        check("select \"nextval\"('s')", false);
        check("select f (1)", false);
        check("select * from t for update", false);
        check("select * from t for no key update", false);
        check("select 1 into t", false);
        check(
            "with x as (delete from t returning *) select * from x",
            false,
        );
        check("select * from (insert into t values (1)) x", false);
        check("select 1; insert into t values (1)", false);
        check("insert into t values (1)", false);
        check("explain analyze delete from t", false);
        check("", false);
        check(";", false);
        check("select 'unended", true);
        check("lock t", false);
    }

    #[test]
    fn the_end_of_a_transaction_is_seen() {
        let check = |sql: &str, expected| {
            assert_eq!(classify(sql.as_bytes()).ends, expected, "{sql}");
        };
        check("COMMIT", Some(End::Commit));
        check("end work;", Some(End::Commit));
        check("commit and no chain", Some(End::Commit));
        check("commit and chain", Some(End::Among));
        check("insert into t values (1); commit", Some(End::Among));
        check("prepare transaction 'x'", Some(End::Among));
        check("commit prepared 'x'", None);
        check("/* x */ rollback", Some(End::Rollback));
        check("abort", Some(End::Rollback));
        check("rollback to savepoint a", None);
        check("rollback and chain", Some(End::Among));
        check("rollback prepared 'x'", None);
        check("select 'commit'", None);
        assert!(classify(b"begin isolation level serializable").begins);
        assert!(classify(b"START TRANSACTION").begins);
        assert!(!classify(b"begin; select 1").begins);
    }

    #[test]
    fn what_gives_a_transaction_no_number_is_seen() {
        let check = |sql: &str, expected| {
            assert_eq!(classify(sql.as_bytes()).unnumbered, expected, "{sql}");
        };
        for sql in [
            "",
            "set transaction isolation level repeatable read, read only",
            "set transaction snapshot '00000003-0000001B-1'",
            "savepoint a; release a",
            "rollback to savepoint a",
            "commit and chain",
            "lock table t in access share mode",
            "declare c cursor for select f()",
            "fetch all from c",
            "explain delete from t",
            "show all; select 1",
            "begin; set a = 1",
        ] {
            check(sql, true);
        }
        for sql in [
            "insert into t values (1)",
            "savepoint a; insert into t values (1)",
            "explain (analyze) delete from t",
            "select f()",
            "execute a",
            "do $$ begin end $$",
        ] {
            check(sql, false);
        }
        assert!(!Class::unknown().unnumbered);
    }

    #[test]
    fn statements_are_counted() {
        let count = |sql: &str| classify(sql.as_bytes()).statements;
        assert_eq!(count("insert into t values (';');;"), Some(1));
        assert_eq!(
            count("insert into t values (1); update t set a = 2"),
            Some(2)
        );
        assert_eq!(count("begin; insert into t values (1)"), None);
        assert_eq!(Class::unknown().statements, None);
    }

    #[test]
    fn a_backslash_makes_a_text_unsure() {
        // As the server reads these while standard_conforming_strings is off, they write.
        for sql in [
            r"select 'a\'' ; delete from t; --'",
            r"insert into t values ('\'), ('; commit; --')",
        ] {
            assert_eq!(classify_unsure(sql.as_bytes()), Class::unknown(), "{sql}");
            assert_ne!(classify(sql.as_bytes()), Class::unknown(), "{sql}");
        }
        for sql in [
            r"select 'a\b'",
            r"select E'\'; delete'",
            "select 'a'''",
            r#"table "\""#,
        ] {
            assert!(classify_unsure(sql.as_bytes()).reads, "{sql}");
        }
        let sql = br"prepare a as select '\'; prepare b as select ';'";
        assert_eq!(preparation(sql, "a"), None);
        assert!(preparation(br"prepare a as select '\n'", "a").is_some());
    }

    #[test]
    fn what_outlives_its_transaction_is_seen() {
        let check = |sql: &str, expected| {
            assert_eq!(classify(sql.as_bytes()).lasting, expected, "{sql}");
        };
        check("prepare a as select 1", true);
        check("deallocate a", true);
        check("select pg_advisory_lock(1)", true);
        check("select pg_advisory_unlock_all()", true);
        check("do $$ begin end $$", true);
        check("set a = 1; listen b", false);
        check("create temp table a (b int)", false);
        check("prepare transaction 'a'", false);
        assert!(Class::unknown().lasting);
    }

    #[test]
    fn what_may_change_the_session_is_seen() {
        let check = |sql: &str, expected| {
            assert_eq!(classify(sql.as_bytes()).changes_session, expected, "{sql}");
        };
        for sql in [
            "set work_mem = '1MB'",
            "SET SESSION x.y TO 1",
            "reset all",
            "discard all",
            "listen a",
            "unlisten *",
            "prepare a as select 1",
            "deallocate a",
            "create temp table a (b int)",
            "create temporary view v as select 1",
            "create global temp table a (b int)",
            "declare c cursor with hold for select 1",
            "select pg_advisory_lock(1)",
            "select pg_try_advisory_lock_shared(1)",
            "select set_config('a.b', '1', false)",
            "select 1 into temp x",
            "create table pg_temp.x (a int)",
            "do $$ begin end $$",
            "select 1; set a = 1",
        ] {
            check(sql, true);
        }
        for sql in [
            "set local work_mem = '1MB'",
            "set transaction read only",
            "set constraints all deferred",
            "prepare transaction 'a'",
            "select 1",
            "update t set temp = 1",
            "begin",
            "create table a (b int)",
        ] {
            check(sql, false);
        }
        assert!(classify(b"set a = 1; listen b; prepare c as select 1").is_of_session);
        for sql in [
            "set a = 1; select 1",
            "prepare transaction 'a'",
            "discard all",
            "",
        ] {
            assert!(!classify(sql.as_bytes()).is_of_session, "{sql}");
        }
        let class = classify(b"set My.Name = 1; select set_config('a.B', '1', false)");
        assert_eq!(class.settings, ["my.name", "a.b"]);
        assert!(!class.hidden_setting);
        assert!(classify(b"select set_config($1, $2, false)").hidden_setting);
    }

    #[test]
    fn a_preparation_is_found_among_other_statements() {
        let sql = b"insert into t values (1); PREPARE \"A;\" as select ';' ; prepare b as select 2";
        let found = |name| preparation(sql, name).map(String::from_utf8_lossy);
        assert_eq!(found("A;").unwrap().trim(), "PREPARE \"A;\" as select ';'");
        assert_eq!(found("b").unwrap().trim(), "prepare b as select 2");
        assert_eq!(found("a"), None);
    }

    #[test]
    fn names_and_texts_are_quoted() {
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("a'b\\"), " E'a''b\\\\'");
    }

    proptest! {
        #[test]
        fn any_text_has_a_class(sql in proptest::collection::vec(any::<u8>(), 0..300)) {
            classify(&sql);
            preparation(&sql, "a");
        }

        #[test]
        fn what_is_quoted_does_nothing(text in "[a-z;() ]{0,40}") {
            for sql in [
                format!("select '{text}'"),
                format!("select $x${text}$x$"),
                format!("select \"{text}\""),
                format!("select /* {text} */ 1"),
            ] {
                let class = classify(sql.as_bytes());
                prop_assert!(class.reads && class.ends.is_none() && !class.changes_session);
            }
        }
    }
}
