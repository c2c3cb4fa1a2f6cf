//! Whom the agent trusts, and what it keeps of its certificate.

use std::{net::SocketAddr, os::unix::fs::PermissionsExt as _, sync::Arc};

use gateway_core::time::duration_to_proto;
use gateway_runtime::{
    backoff::Backoff,
    tls::{self, CurrentCertificate},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::{certificate::NewKey, trust::Pins, *};
use crate::metrics::Metrics;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca(name: &str) -> Ca {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn pem(ca: &Ca) -> String {
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, ca.der());
    format!("-----BEGIN CERTIFICATE-----\n{encoded}\n-----END CERTIFICATE-----\n")
}

/// A server whose certificate is of `issuer`, and who sends `sent` along.
async fn server(issuer: &Ca, sent: &Ca) -> (SocketAddr, JoinSet<()>) {
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, issuer).unwrap();
    let chain = vec![leaf.der().clone(), sent.der().clone()];
    let certified = tls::certified_key(chain, PrivateKeyDer::Pkcs8(key.serialize_der().into())).unwrap();
    let acceptor = tls::acceptor(CurrentCertificate::new(certified), None, &[tls::HTTP_2]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            drop(tls::handshake(&acceptor, stream).await);
        }
    });
    (address, serving)
}

/// What is wrong with the server, if the agent does not trust it.
async fn mistrust(
    address: SocketAddr,
    ca: Option<&Path>,
    pin: Option<Pin>,
    name: &'static str,
) -> Option<String> {
    let pins = pin.map(|pin| Pins::new(vec![pin]));
    mistrust_with(trust::client_config(ca, pins, CurrentCertificate::default()).unwrap(), address, name).await
}

async fn mistrust_with(
    config: rustls::ClientConfig,
    address: SocketAddr,
    name: &'static str,
) -> Option<String> {
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let failure = connector.connect(ServerName::try_from(name).unwrap(), stream).await.err()?;
    Some(trust::mistrust(&failure).unwrap())
}

/// The authority that the join token names is trusted, and no other: not another one, not one that only sends the
/// named certificate along, and not for another host.
#[tokio::test]
async fn the_named_authority_is_trusted() {
    let (named, other) = (ca("named"), ca("other"));
    let pin = Some(Pin::of(named.der()));
    let (genuine, _serving) = server(&named, &named).await;
    assert_eq!(mistrust(genuine, None, pin, "localhost").await, None);
    assert!(mistrust(genuine, None, pin, "other.example.com").await.unwrap().contains("name"));
    let (wrong, _serving) = server(&other, &other).await;
    assert!(mistrust(wrong, None, pin, "localhost").await.unwrap().contains("join token"));
    let (imposter, _serving) = server(&other, &named).await;
    assert!(mistrust(imposter, None, pin, "localhost").await.is_some());
    // Without a pin it is the system's roots that count.
    assert!(mistrust(genuine, None, None, "localhost").await.is_some());
}

/// The file of an authority wins over the join token.
#[tokio::test]
async fn the_given_authority_is_trusted() {
    let (given, other) = (ca("given"), ca("other"));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    fs::write(&file, pem(&given)).unwrap();
    let pin = Some(Pin::of(other.der()));
    let (genuine, _serving) = server(&given, &given).await;
    assert_eq!(mistrust(genuine, Some(&file), pin, "localhost").await, None);
    let (wrong, _serving) = server(&other, &other).await;
    assert!(mistrust(wrong, Some(&file), pin, "localhost").await.is_some());
    let missing = trust::client_config(Some(Path::new("/none.pem")), None, CurrentCertificate::default());
    assert!(matches!(missing, Err(TrustError::CaFile(_))));
}

/// The control plane names a new authority beside its own: both are trusted from then on, also after a restart. Once it
/// has proven itself by the new one and names that alone, the old one is forgotten. What it says over no connection, and
/// nothing, and too much, change nothing.
#[tokio::test]
async fn authorities_are_learned_and_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let (old, new, other) = (ca("old"), ca("new"), ca("other"));
    let der = |authorities: &[&Ca]| authorities.iter().map(|one| one.der().to_vec()).collect::<Vec<_>>();
    let (old_server, _of_old) = server(&old, &old).await;
    let (new_server, _of_new) = server(&new, &new).await;
    let (other_server, _of_other) = server(&other, &other).await;
    let json = r#"{"agent_id":"agt_1","region":"eu","credential":"agent_x"}"#;
    let mut identity: Identity = serde_json::from_str(json).unwrap();
    identity.set_pins(&[Pin::of(old.der())]);
    store_identity(&identity, directory.path()).unwrap();
    let stored = || stored_identity(directory.path()).unwrap().unwrap().pins().collect::<Vec<_>>();
    let pin = |one: &Ca| Pin::of(one.der());
    let link = Link::new("https://localhost:1", None, stored()).unwrap();
    let pins = || Some(link.pins().unwrap().clone());
    let config = || trust::client_config(None, pins(), CurrentCertificate::default()).unwrap();
    let learn = |named: &[Vec<u8>]| learn_authorities(&link, named, directory.path()).unwrap();

    learn(&der(&[&other]));
    assert_eq!(stored(), [pin(&old)], "nobody has proven to be the control plane");
    assert_eq!(mistrust_with(config(), old_server, "localhost").await, None);
    assert!(mistrust_with(config(), new_server, "localhost").await.is_some());
    learn(&[]);
    learn(&vec![new.der().to_vec(); 9]);
    assert_eq!(stored(), [pin(&old)]);

    learn(&der(&[&old, &new]));
    assert_eq!(stored(), [pin(&old), pin(&new)]);
    assert!(mistrust_with(config(), other_server, "localhost").await.is_some());
    assert_eq!(mistrust_with(config(), new_server, "localhost").await, None);
    learn(&der(&[&new]));
    assert_eq!(stored(), [pin(&new)]);
    assert!(mistrust_with(config(), old_server, "localhost").await.is_some());
    assert_eq!(mistrust_with(config(), new_server, "localhost").await, None);

    // A control plane that names only what it does not show yet is reached as before.
    learn(&der(&[&other]));
    assert_eq!(stored(), [pin(&new), pin(&other)]);
    assert_eq!(mistrust_with(config(), new_server, "localhost").await, None);
}

/// What an operator gave the agent to trust, or left to the system, is not the control plane's to change.
#[tokio::test]
async fn given_authorities_are_not_overridden() {
    let directory = tempfile::tempdir().unwrap();
    let (given, new) = (ca("given"), ca("new"));
    let file = directory.path().join("ca.pem");
    fs::write(&file, pem(&given)).unwrap();
    let json = r#"{"agent_id":"agt_1","region":"eu","credential":"agent_x"}"#;
    let mut identity: Identity = serde_json::from_str(json).unwrap();
    identity.set_pins(&[Pin::of(given.der())]);
    store_identity(&identity, directory.path()).unwrap();
    for link in [
        Link::new("https://localhost:1", Some(&file), identity.pins()).unwrap(),
        Link::new("https://localhost:1", None, None).unwrap(),
    ] {
        assert!(link.pins().is_none());
        learn_authorities(&link, &[new.der().to_vec()], directory.path()).unwrap();
    }
    let stored = stored_identity(directory.path()).unwrap().unwrap();
    assert_eq!(stored.pins().collect::<Vec<_>>(), [Pin::of(given.der())]);
}

/// Enrolling at a server that is not to be trusted fails for good and says why; the join token is not sent.
#[tokio::test]
async fn enrolling_stops_at_a_wrong_server() {
    let (named, other) = (ca("named"), ca("other"));
    let (address, _serving) = server(&other, &other).await;
    let url = format!("https://localhost:{}", address.port());
    let pin = Some(Pin::of(named.der()));
    let (link, token) =
        (Link::new(&url, None, pin).unwrap(), JoinToken { secret: "join_secret".into(), pin });
    let directory = tempfile::tempdir().unwrap();
    let failure = enroll(&link, &token, Scope::default(), directory.path()).await.unwrap_err();
    assert!(matches!(&failure, IdentityError::Untrusted { .. }), "{failure}");
    assert!(failure.to_string().contains("the authority that the join token named"), "{failure}");
    assert!(stored_identity(directory.path()).unwrap().is_none());
}

/// A join token may carry a pin; one that is cut in the middle of it is refused.
#[test]
fn join_tokens_carry_pins() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    let read = |text: &str| {
        fs::write(&file, text).unwrap();
        JoinToken::read(Some(&file), directory.path())
    };
    let plain = read(" join_abc\n").ok().unwrap();
    assert_eq!((plain.secret.as_str(), plain.pin), ("join_abc", None));
    let pin = Pin::of(b"certificate");
    let pinned = read(&format!("join_abc.{}\n", String::from(pin))).ok().unwrap();
    assert_eq!((pinned.secret.as_str(), pinned.pin), ("join_abc", Some(pin)));
    let cut = format!("join_abc.{}", &String::from(pin)[..40]);
    assert!(matches!(read(&cut), Err(IdentityError::DamagedJoinToken(_))));
    assert!(matches!(read("join_abc."), Err(IdentityError::DamagedJoinToken(_))));
    assert!(matches!(read("\n"), Err(IdentityError::EmptyJoinToken(_))));
}

/// What an identity of before pins looks like is read, and one with a pin comes back as it was.
#[test]
fn identities_keep_their_pin() {
    let directory = tempfile::tempdir().unwrap();
    let before = r#"{"agent_id":"agt_1","region":"eu","credential":"agent_x"}"#;
    fs::write(directory.path().join(CREDENTIAL_FILE), before).unwrap();
    let mut identity = stored_identity(directory.path()).unwrap().unwrap();
    assert_eq!(identity.control_plane_pin, None);
    identity.control_plane_pin = Some(Pin::of(b"certificate"));
    store_identity(&identity, directory.path()).unwrap();
    let again = stored_identity(directory.path()).unwrap().unwrap();
    assert_eq!(again.control_plane_pin, identity.control_plane_pin);
}

fn answer(key: &NewKey, issuer: &Ca, life: Duration) -> v1::AgentCertificate {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "agt_1");
    let leaf = params.signed_by(key.pair(), issuer).unwrap();
    v1::AgentCertificate {
        chain: vec![leaf.der().to_vec(), issuer.der().to_vec()],
        lifetime: Some(duration_to_proto(life)),
        ..Default::default()
    }
}

/// Key and certificate are kept together, closed to others; what cannot be used counts as none.
#[test]
fn certificates_are_kept() {
    let (directory, issuer) = (tempfile::tempdir().unwrap(), ca("issuer"));
    let life = Duration::from_secs(3_600);
    assert!(AgentCertificate::stored(directory.path()).is_none());
    let key = NewKey::make().unwrap();
    let answered = answer(&key, &issuer, life);
    let made = AgentCertificate::new(key, answered.clone()).unwrap();
    made.store(directory.path()).unwrap();
    let stored = AgentCertificate::stored(directory.path()).unwrap();
    assert_eq!(stored.certified_key().unwrap().cert, made.certified_key().unwrap().cert);
    assert!(!format!("{made:?}").contains("key"));
    let file = directory.path().join("certificate.json");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    assert!(AgentCertificate::stored(directory.path()).is_none());
    // A certificate of another key, and an answer without one.
    let other = NewKey::make().unwrap();
    assert!(matches!(AgentCertificate::new(other, answered), Err(CertificateError::Answer(_))));
    let nothing = v1::AgentCertificate::default();
    assert!(AgentCertificate::new(NewKey::make().unwrap(), nothing).is_err());
}

fn keeper(data_dir: &Path) -> (Keeper, Link) {
    let link = Link::new("https://localhost:1", None, Some(Pin::of(b"x"))).unwrap();
    let identity: Identity =
        serde_json::from_str(r#"{"agent_id":"agt_1","region":"eu","credential":"agent_x"}"#).unwrap();
    let client = client(&link, &identity, data_dir).unwrap();
    (Keeper::new(link.clone(), client, data_dir, Metrics::new()), link)
}

/// An expired certificate is renewed at once when the control plane is back, which whoever is refused for it notices
/// first; a control plane that refuses to renew is not asked at each refusal.
#[tokio::test(start_paused = true)]
async fn refusals_end_the_wait_for_a_renewal() {
    let directory = tempfile::tempdir().unwrap();
    let (keeper, link) = keeper(directory.path());
    let (stop, hour) = (CancellationToken::new(), Duration::from_secs(3_600));
    let started = tokio::time::Instant::now();
    let refuse = async || link.refuse(&Status::unauthenticated("the certificate has expired"));
    let mut backoff = Backoff::new(hour, hour);
    let (was_refused, ()) = tokio::join!(keeper.wait(&mut backoff, true, &stop), refuse());
    assert_eq!(was_refused, Some(true));
    assert!(started.elapsed().is_zero());
    let (was_refused, ()) = tokio::join!(keeper.wait(&mut backoff, false, &stop), refuse());
    assert_eq!(was_refused, Some(false));
    assert!(!started.elapsed().is_zero() && link.forget_refusals());
    stop.cancel();
    assert_eq!(keeper.wait(&mut backoff, true, &stop).await, None);
}

/// A certificate is renewed between 65 and 75 % of its life, at once when it is missing, has expired, or the
/// clock went back to before it came.
#[test]
fn renewal_is_due_in_time() {
    let (directory, issuer) = (tempfile::tempdir().unwrap(), ca("issuer"));
    let life = Duration::from_secs(100);
    let key = NewKey::make().unwrap();
    let answered = answer(&key, &issuer, life);
    let received = gateway_runtime::clock::now();
    AgentCertificate::new(key, answered).unwrap().store(directory.path()).unwrap();
    let keeper = |data_dir: &Path| keeper(data_dir).0;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let keeper_of_it = keeper(directory.path());
    let due_at = |second: i64| keeper_of_it.due_in(received + jiff::SignedDuration::from_secs(second));
    assert!(!due_at(60).is_zero() && due_at(60) <= Duration::from_secs(16));
    assert!(due_at(78).is_zero() && due_at(100_000).is_zero() && due_at(-10).is_zero());
    // The clock is looked at again in between, since it may jump.
    assert_eq!(due_at(2), Duration::from_secs(60));
    let empty = tempfile::tempdir().unwrap();
    assert!(keeper(empty.path()).due_in(received).is_zero());
}

/// Who has enrolled shows the certificate from the first connection on, whoever of its tasks makes that: without it the
/// control plane refuses the call.
#[tokio::test]
async fn certificates_are_shown_from_the_beginning() {
    let (directory, issuer) = (tempfile::tempdir().unwrap(), ca("issuer"));
    let key = NewKey::make().unwrap();
    let answered = answer(&key, &issuer, Duration::from_secs(100));
    let leaf = answered.chain[0].clone();
    AgentCertificate::new(key, answered).unwrap().store(directory.path()).unwrap();
    let link = Link::new("https://localhost:1", None, Some(Pin::of(b"x"))).unwrap();
    let identity: Identity =
        serde_json::from_str(r#"{"agent_id":"agt_1","region":"eu","credential":"agent_x"}"#).unwrap();
    let enrolled = enrolment::Enrolled::new(identity, link, directory.path()).unwrap();
    let shown = enrolled.link.certificate().load().expect("it is shown");
    assert_eq!(shown.cert[0].as_ref(), leaf);
}

/// Without TLS there is no certificate to keep.
#[tokio::test]
async fn nothing_is_kept_without_tls() {
    let directory = tempfile::tempdir().unwrap();
    let link = Link::new("http://127.0.0.1:1", None, None).unwrap();
    let identity: Identity =
        serde_json::from_str(r#"{"agent_id":"agt_1","region":"eu","credential":"agent_x"}"#).unwrap();
    let client = client(&link, &identity, directory.path()).unwrap();
    let metrics = Metrics::new();
    let stop = CancellationToken::new();
    stop.cancel();
    Keeper::new(link, client, directory.path(), metrics.clone()).run(stop).await.unwrap();
    assert!(!metrics.is_certificate_expired() && AgentCertificate::stored(directory.path()).is_none());
}
