use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// A file that a crash left half-written, readable for everybody, does not make the next key so.
#[test]
fn leftovers_open_no_key() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["ca.new", "ca.key.new"] {
        fs::write(directory.path().join(name), "left over").unwrap();
    }
    Authority::open(directory.path(), Timestamp::now()).unwrap();
    let key = directory.path().join("ca.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
}

const DAY_LIFE: Duration = DAY;

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn request(key: &KeyPair, params: CertificateParams) -> Vec<u8> {
    params.serialize_request(key).unwrap().der().to_vec()
}

fn grant(authority: &Authority, request: &[u8]) -> Result<AgentCertificate, InvalidRequest> {
    authority.agent_certificate(request, "agt_1", now(), DAY_LIFE).unwrap()
}

/// The authority is made once, closed to others, and comes back as it was; a damaged one is an error and not a
/// new one, which nobody would trust.
#[test]
fn the_authority_stays() {
    let directory = tempfile::tempdir().unwrap();
    let first = Authority::open(directory.path(), now()).unwrap();
    let again = Authority::open(directory.path(), now()).unwrap();
    assert_eq!((first.certificate(), first.pin()), (again.certificate(), again.pin()));
    assert_eq!(first.pin().len(), 43);
    let key = directory.path().join(KEY_FILE);
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let public = CertificateDer::from_pem_file(directory.path().join(CERTIFICATE_FILE)).unwrap();
    assert_eq!(public, *first.certificate());
    fs::remove_file(directory.path().join(CERTIFICATE_FILE)).unwrap();
    Authority::open(directory.path(), now()).unwrap();
    assert!(directory.path().join(CERTIFICATE_FILE).exists());
    let whole = fs::read(&key).unwrap();
    for cut in [0, 10, whole.len() / 2, whole.len() - 30] {
        fs::write(&key, &whole[..cut]).unwrap();
        assert!(matches!(Authority::open(directory.path(), now()), Err(AuthorityError::Damaged(_))), "{cut}");
    }
}

/// A certificate is for the agent that the control plane names, whatever the request says, for a client, and
/// ends when it should.
#[test]
fn only_the_key_of_a_request_counts() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::open(directory.path(), now()).unwrap();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::new(["somebody.example.com".to_owned()]).unwrap();
    params.distinguished_name = name("agt_somebody_else");
    params.subject_alt_names.push(SanType::URI(format!("{AGENT_NAME_PREFIX}agt_2").try_into().unwrap()));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let granted = grant(&authority, &request(&key, params)).ok().unwrap();
    assert_eq!(granted.chain[1], authority.certificate().to_vec());
    let agent = certified_agent(&granted.chain[0]).unwrap();
    let expire_seconds = now().as_second() + i64::try_from(DAY_LIFE.as_secs()).unwrap();
    assert_eq!(agent, CertifiedAgent { agent_id: "agt_1".into(), expire_seconds });
    assert_eq!(granted.expire_time.as_second(), expire_seconds);
    let text = String::from_utf8_lossy(&granted.chain[0]).into_owned();
    assert!(!text.contains("somebody"));
    let (_, parsed) = x509_parser::parse_x509_certificate(&granted.chain[0]).unwrap();
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !parsed.is_ca());
}

/// Requests that are no requests, are signed by another key, or are for another kind of key are refused.
#[test]
fn odd_requests_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::open(directory.path(), now()).unwrap();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let good = request(&key, CertificateParams::default());
    assert!(grant(&authority, &good).is_ok());
    let mut forged = good.clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    for odd in [&b""[..], b"no request", &good[..good.len() / 2], &forged, &vec![0x30; REQUEST_BYTES_MAX + 1]]
    {
        assert!(matches!(grant(&authority, odd), Err(InvalidRequest::Unreadable)));
    }
    let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let other = request(&other, CertificateParams::default());
    assert!(matches!(grant(&authority, &other), Err(InvalidRequest::Key)));
}

/// What is no agent's certificate names no agent.
#[test]
fn other_certificates_name_no_agent() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::open(directory.path(), now()).unwrap();
    let server = authority.server_certificate(&["cp.example.com".into(), "10.0.0.7".into()], now()).unwrap();
    assert_eq!(server.cert.len(), 2);
    assert_eq!(certified_agent(&server.cert[0]), None);
    assert_eq!(certified_agent(authority.certificate()), None);
    assert_eq!(certified_agent(b"no certificate"), None);
}

/// Agents are told of the authority there is and of those to come, each once; a file of those that cannot be read, or with
/// more than agents take, stops the start.
#[test]
fn authorities_to_come_are_announced() {
    let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let open = || Authority::open(directory.path(), now());
    let own = open().unwrap();
    assert_eq!(own.announced().collect::<Vec<_>>(), [own.certificate()]);
    let next = Authority::open(other.path(), now()).unwrap();
    let file = directory.path().join("ca-next.pem");
    fs::write(&file, [own.pem(), next.pem()].concat()).unwrap();
    let both = open().unwrap();
    assert_eq!(both.announced().collect::<Vec<_>>(), [own.certificate(), next.certificate()]);
    // Whose certificates agents show is another matter.
    assert_eq!(both.trusted().collect::<Vec<_>>(), [own.certificate()]);
    fs::write(&file, "no certificate").unwrap();
    assert!(matches!(open(), Err(AuthorityError::Others(path)) if path == file));
    fs::write(&file, next.pem().repeat(8)).unwrap();
    assert!(matches!(open(), Err(AuthorityError::TooMany(path)) if path == file));
}
