//! Becoming one of the fleet.

use std::os::unix::fs::PermissionsExt as _;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::super::authority::{self, Renewed, SigningRequest, Token};
use super::super::identity::Key;
use super::super::{error, join::join, verify};
use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// The agent of the host that holds the authority.
async fn door(fleet: &Fleet, clock: Clock) -> Agent {
    let authority = Some(Arc::clone(&fleet.authority));
    agent_with(
        fleet.host_at("a", clock),
        authority,
        Keeper::default(),
        Patience::default(),
    )
    .await
}

fn token(fleet: &Fleet, host: &str) -> Token {
    fleet
        .authority
        .token(&name(host), HOUR, SystemTime::now())
        .unwrap()
}

async fn refused(fleet: &Fleet, door: &Agent, token: &Token, kind: Kind, words: &[&str]) {
    let dir = fleet.dir("refused");
    let error = join(&dir, &door.address, token, system_clock())
        .await
        .unwrap_err();
    check(&error, kind, words);
    check(&error, kind, &[&door.address]);
    assert!(!dir.exists(), "nothing is kept");
}

#[tokio::test]
async fn a_host_joins_with_a_token_once() {
    let fleet = Fleet::begin();
    let door = door(&fleet, system_clock()).await;
    let token = token(&fleet, "new");
    let text = token.text().unwrap();
    assert_eq!(Token::parse(&format!(" {text}\n")).unwrap(), token);
    let shown = format!("{token:?}");
    assert!(
        shown.contains(&token.id) && !shown.contains(&token.secret),
        "{shown}"
    );
    let identity = join(&fleet.dir("new"), &door.address, &token, system_clock())
        .await
        .unwrap();
    assert_eq!(identity.host(), name("new"));
    assert_eq!(
        identity.authority(),
        (name("a"), Some(door.address.clone()))
    );
    let file = fleet.dir("new").join("identity.json");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Nothing of the key, nor of the token, is with the authority.
    let kept = std::fs::read_to_string(fleet.dir("a").join("ca/authority.json")).unwrap();
    assert!(
        !kept.contains(&token.secret) && !kept.contains("PRIVATE"),
        "{kept}"
    );
    // It is one of them: both ways.
    let there = agent(Arc::new(identity)).await;
    let mut link = Link::connect(&fleet.host("b"), &name("new"), &there.address, BOUND)
        .await
        .unwrap();
    link.ask(&question(), BOUND).await.unwrap();

    let words = ["a at", "was used", "forebay fleet ca token HOST"];
    refused(&fleet, &door, &token, Kind::Refused, &words).await;
    // Somebody who looks at the files of the host may use them.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = Identity::load(&fleet.dir("new"), system_clock())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("chmod 600") && error.contains("identity.json"),
        "{error}"
    );
}

#[tokio::test]
async fn of_many_who_have_a_token_one_joins() {
    let fleet = Fleet::begin();
    let door = door(&fleet, system_clock()).await;
    let token = token(&fleet, "new");
    let mut all = tokio::task::JoinSet::new();
    for i in 0..6 {
        let (dir, address, token) = (
            fleet.dir(&format!("new{i}")),
            door.address.clone(),
            token.clone(),
        );
        all.spawn(async move { join(&dir, &address, &token, system_clock()).await.is_ok() });
    }
    let joined = all
        .join_all()
        .await
        .into_iter()
        .filter(|joined| *joined)
        .count();
    assert_eq!(joined, 1);
}

#[tokio::test]
async fn a_token_is_good_for_its_time_and_its_host() {
    let fleet = Fleet::begin();
    let door = door(&fleet, system_clock()).await;
    let long_ago = SystemTime::now() - 2 * HOUR;
    let old = fleet.authority.token(&name("old"), HOUR, long_ago).unwrap();
    refused(
        &fleet,
        &door,
        &old,
        Kind::Refused,
        &["has ended", "forebay fleet ca token HOST"],
    )
    .await;

    let other = Token {
        host: name("other"),
        ..token(&fleet, "new")
    };
    refused(
        &fleet,
        &door,
        &other,
        Kind::Refused,
        &["its token is for new", "other"],
    )
    .await;
    let wrong = Token {
        secret: "0".repeat(64),
        ..token(&fleet, "new")
    };
    refused(
        &fleet,
        &door,
        &wrong,
        Kind::Refused,
        &["its token is not one of this fleet"],
    )
    .await;
    // One that was replaced.
    let first = token(&fleet, "new");
    let second = token(&fleet, "new");
    refused(&fleet, &door, &first, Kind::Refused, &["was replaced"]).await;
    join(&fleet.dir("new"), &door.address, &second, system_clock())
        .await
        .unwrap();
    // Whoever is in a fleet does not become another by mistake.
    let another = token(&fleet, "another");
    let error = join(&fleet.dir("new"), &door.address, &another, system_clock())
        .await
        .unwrap_err();
    check(&error, Kind::Local, &["this host is new of fleet shop"]);

    for none in [
        "",
        "x",
        "forebay-join-1.",
        "forebay-join-1.e30",
        &"x".repeat(2000),
    ] {
        let error = Token::parse(none).unwrap_err().to_string();
        assert!(error.contains("copy all of what"), "{error}");
    }
}

#[tokio::test]
async fn who_joins_speaks_to_the_host_that_made_the_token_only() {
    let (fleet, other) = (Fleet::begin(), Fleet::begin());
    let token = token(&fleet, "new");
    // A host that pretends, and lets anybody in: it never sees the secret.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let credentials = other.host("a").credentials();
    let config = Arc::new(verify::door(&credentials, &system_clock()).unwrap());
    let pretends = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        if let Ok(mut stream) = tokio_rustls::TlsAcceptor::from(config).accept(socket).await {
            stream.read_to_end(&mut heard).await.ok();
        }
        heard
    });
    let error = join(&fleet.dir("new"), &address, &token, system_clock())
        .await
        .unwrap_err();
    check(&error, Kind::NotOfFleet, &["a at", "not of this fleet"]);
    assert!(pretends.await.unwrap().is_empty());
    // A host of the right fleet that is not the one that made it.
    let b = agent_with(
        fleet.host("b"),
        Some(Arc::clone(&fleet.authority)),
        Keeper::default(),
        Patience::default(),
    )
    .await;
    let error = join(&fleet.dir("new"), &b.address, &token, system_clock())
        .await
        .unwrap_err();
    check(&error, Kind::WrongHost, &["it is b, and a was meant"]);
}

#[tokio::test]
async fn who_has_no_token_hears_nothing_at_the_door() {
    let fleet = Fleet::begin();
    let door = door(&fleet, system_clock()).await;
    let token = token(&fleet, "new");
    let knock = async |server: String| {
        let authority = token.authority.clone();
        let config = verify::joiner(authority, "shop".to_owned(), &name("a"), &system_clock());
        let socket = TcpStream::connect(&door.address).await.unwrap();
        let tls = TlsConnector::from(Arc::new(config.unwrap()));
        tls.connect(ServerName::try_from(server).unwrap(), socket)
            .await
            .map(drop)
    };
    for id in ["0011223344556677", "x", "a.b"] {
        let error = knock(format!("{id}.join.forebay.invalid"))
            .await
            .unwrap_err();
        let error = Error::io("a", "agree", &error);
        assert_eq!(
            error.kind,
            Kind::Cut,
            "it was hung up on without a word: {error}"
        );
    }
    assert!(knock("a.example.org".to_owned()).await.is_err());
    knock(format!("{}.join.forebay.invalid", token.id))
        .await
        .unwrap();
    // A host that does not hold the authority has no door.
    let there = agent(fleet.host("b")).await;
    let error = join(&fleet.dir("new"), &there.address, &token, system_clock())
        .await
        .unwrap_err();
    check(&error, Kind::Refused, &["hung up"]);
    // It was not spent by any of that.
    join(&fleet.dir("new"), &door.address, &token, system_clock())
        .await
        .unwrap();
}

#[tokio::test]
async fn clocks_too_far_apart_are_found_before_the_token_is_spent() {
    let fleet = Fleet::begin();
    let door = door(&fleet, system_clock()).await;
    let token = token(&fleet, "new");
    for seconds in [-900, 900] {
        let error = join(&fleet.dir("new"), &door.address, &token, ahead(seconds))
            .await
            .unwrap_err();
        let words = [
            "a at",
            "its clock says",
            "the clock of this host",
            "set both clocks",
        ];
        check(&error, Kind::Refused, &words);
    }
    let identity = join(&fleet.dir("new"), &door.address, &token, ahead(-290))
        .await
        .unwrap();
    let identity = Arc::new(identity);
    // Its clock does not make its brand-new certificate one of the future.
    let mut link = Link::connect(&identity, &name("a"), &door.address, BOUND)
        .await
        .unwrap();
    link.ask(&question(), BOUND).await.unwrap();
    let begins = identity.certificate().not_before_unix_s;
    assert!(error::shown(UNIX_EPOCH + Duration::from_secs(begins)).ends_with("UTC"));
}

#[test]
fn a_fleet_is_begun_once_and_its_name_is_one() {
    let fleet = Fleet::begin();
    let now = SystemTime::now();
    let begin = |dir: PathBuf, fleet: &str| {
        let beginning = Beginning {
            fleet: fleet.to_owned(),
            host: name("a"),
        };
        Authority::init(&dir, beginning, now).map(drop)
    };
    let error = begin(fleet.dir("a"), "shop").unwrap_err().to_string();
    assert!(
        error.contains("in one already") && error.contains("--dir"),
        "{error}"
    );
    for bad in ["", "Shop", "a/b", "-a"] {
        let error = begin(fleet.dir("x"), bad).unwrap_err().to_string();
        assert!(error.contains(&format!("`{bad}`")), "{error}");
    }
    let error = Authority::open(&fleet.dir("b")).unwrap_err().to_string();
    assert!(error.contains("forebay fleet ca init"), "{error}");
    let error = fleet
        .authority
        .forget(&name("a"), now)
        .unwrap_err()
        .to_string();
    assert!(error.contains("holds the authority"), "{error}");
    let error = fleet
        .authority
        .forget(&name("nobody"), now)
        .unwrap_err()
        .to_string();
    assert!(error.contains("look whether the name is right"), "{error}");
    for file in ["ca/authority.pem", "ca/authority.json", "identity.json"] {
        let mode = std::fs::metadata(fleet.dir("a").join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[test]
fn a_key_of_a_fleet_that_others_may_read_is_not_used_and_none_is_written_over() {
    let fleet = Fleet::begin();
    let (pem, now) = (fleet.dir("a").join("ca/authority.pem"), SystemTime::now());
    let mode = |mode| std::fs::set_permissions(&pem, std::fs::Permissions::from_mode(mode));
    for readable in [0o640, 0o604] {
        mode(readable).unwrap();
        let error = fleet.authority.token(&name("b"), HOUR, now).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("chmod 600") && error.contains("authority.pem"),
            "{error}"
        );
    }
    mode(0o600).unwrap();
    fleet.authority.token(&name("b"), HOUR, now).unwrap();

    // All else was lost.
    let key = std::fs::read(&pem).unwrap();
    for file in ["ca/authority.json", "identity.json"] {
        std::fs::remove_file(fleet.dir("a").join(file)).unwrap();
    }
    let beginning = Beginning {
        fleet: "shop".to_owned(),
        host: name("a"),
    };
    let error = Authority::init(&fleet.dir("a"), beginning, now)
        .unwrap_err()
        .to_string();
    assert!(error.contains("in one already"), "{error}");
    assert_eq!(std::fs::read(&pem).unwrap(), key);
}

#[test]
fn a_list_with_moments_that_nothing_can_say_is_damaged() {
    let fleet = Fleet::begin();
    let token = token(&fleet, "b");
    let file = fleet.dir("a").join("ca/authority.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let mut list: serde_json::Value = serde_json::from_str(&text).unwrap();
    list["tokens"][0]["until_unix_s"] = u64::MAX.into();
    std::fs::write(&file, list.to_string()).unwrap();
    let error = fleet.authority.expects(&token.id, SystemTime::now());
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("authority.json") && error.contains("after the year 9999"),
        "{error}"
    );
}

#[tokio::test]
async fn a_place_in_a_fleet_that_cannot_be_read_is_not_written_over() {
    let fleet = Fleet::begin();
    let door = door(&fleet, system_clock()).await;
    let token = token(&fleet, "new");
    let (dir, file) = (fleet.dir("new"), fleet.dir("new").join("identity.json"));
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(&file, "{").unwrap();
    for mode in [0o600, 0o644] {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let error = join(&dir, &door.address, &token, system_clock())
            .await
            .unwrap_err();
        check(&error, Kind::Local, &["identity.json", "a at"]);
        assert_eq!(std::fs::read(&file).unwrap(), b"{");
    }
    // The token was not spent on it.
    std::fs::remove_file(&file).unwrap();
    join(&dir, &door.address, &token, system_clock())
        .await
        .unwrap();
}

#[test]
fn a_request_that_is_not_signed_with_its_key_gets_no_certificate() {
    let fleet = Fleet::begin();
    let (b, c) = (fleet.host("b"), fleet.host("c"));
    let request = Key::generate().unwrap().request(&name("b")).unwrap();
    let now = SystemTime::now();
    renewed(&fleet, &b, &request, now).unwrap();
    // It was signed for another host.
    let error = renewed(&fleet, &c, &request, now).unwrap_err().to_string();
    assert!(error.contains("not signed with its key"), "{error}");
    for (public_key, signature) in [("", ""), ("!", "!"), ("AAAA", request.signature.as_str())] {
        let request = SigningRequest {
            public_key: public_key.to_owned(),
            signature: signature.to_owned(),
        };
        renewed(&fleet, &b, &request, now).unwrap_err();
    }
}

/// What the authority makes for a host that shows the certificate that it has.
fn renewed(
    fleet: &Fleet,
    host: &Identity,
    request: &SigningRequest,
    now: SystemTime,
) -> Result<Renewed, authority::Error> {
    let (name, serial) = (host.host(), host.serial());
    fleet.authority.renew((&name, &serial), Some(request), now)
}

#[test]
fn a_host_that_was_forgotten_gets_no_certificate_by_one_from_before() {
    let fleet = Fleet::begin();
    let (b, now) = (fleet.host("b"), SystemTime::now());
    let request = Key::generate().unwrap().request(&name("b")).unwrap();
    renewed(&fleet, &b, &request, now).unwrap();
    assert_eq!(fleet.authority.forget(&name("b"), now).unwrap(), 2);
    // It asks over a connection that is there.
    let error = renewed(&fleet, &b, &request, now).unwrap_err().to_string();
    assert!(
        error.contains("certificate of b") && error.contains("was taken back"),
        "{error}"
    );
    // It came back: what it had before is good for nothing still.
    let token = token(&fleet, "b");
    let secret = (token.id.as_str(), token.secret.as_str());
    fleet
        .authority
        .admit(secret, &name("b"), &request, now)
        .unwrap();
    renewed(&fleet, &b, &request, now).unwrap_err();
    // One of another host is none of b's.
    let c = fleet.host("c").serial();
    let error = fleet
        .authority
        .renew((&name("b"), &c), Some(&request), now)
        .unwrap_err()
        .to_string();
    assert!(error.contains("is none of those"), "{error}");
    assert_eq!(fleet.authority.forget(&name("b"), now).unwrap(), 1);
}

#[test]
fn a_host_that_is_forgotten_while_it_joins_is_out() {
    let fleet = Fleet::begin();
    let (authority, now) = (&fleet.authority, SystemTime::now());
    let new = name("new");
    let request = Key::generate().unwrap().request(&new).unwrap();
    for _ in 0..40 {
        let token = token(&fleet, "new");
        let both = std::sync::Barrier::new(2);
        let (joined, forgotten) = std::thread::scope(|scope| {
            let joins = scope.spawn(|| {
                both.wait();
                authority.admit((&token.id, &token.secret), &new, &request, now)
            });
            let forgets = scope.spawn(|| {
                both.wait();
                authority.forget(&new, now)
            });
            (joins.join().unwrap(), forgets.join().unwrap())
        });
        // Whichever came first, there was something to forget, and nothing is left of it.
        assert_eq!(forgotten.unwrap(), usize::from(joined.is_ok()));
        let error = authority.forget(&new, now).unwrap_err().to_string();
        assert!(error.contains("no certificate of this fleet"), "{error}");
    }
}

#[test]
fn a_host_that_renews_in_a_loop_takes_nobodys_room_and_is_not_locked_out() {
    let fleet = Fleet::begin();
    let (b, c, now) = (fleet.host("b"), fleet.host("c"), SystemTime::now());
    let request = |host| Key::generate().unwrap().request(&name(host)).unwrap();
    let (of_b, of_c) = (request("b"), request("c"));
    // The one that it began with is the first.
    for _ in 1..8 {
        renewed(&fleet, &b, &of_b, now).unwrap();
    }
    let error = renewed(&fleet, &b, &of_b, now).unwrap_err().to_string();
    assert!(
        error.contains("certificate of b") && error.contains("8 that it has are not due"),
        "{error}"
    );
    renewed(&fleet, &c, &of_c, now).unwrap();
    // When they are due it gets others.
    let due = now + Duration::from_secs(20 * 86_400);
    for _ in 0..8 {
        renewed(&fleet, &b, &of_b, due).unwrap();
    }
    renewed(&fleet, &b, &of_b, due).unwrap_err();
    assert_eq!(fleet.authority.forget(&name("b"), due).unwrap(), 16);
}
