use super::*;

const ID: &str = "msg_01J0QZ6K7W8X9Y0Z1A2B3C4D5E";
const TIMESTAMP: i64 = 1_735_689_600;
const BODY: &str = r#"{"type":"whatsapp.message.received","timestamp":"2025-01-01T00:00:00.000Z","data":{"from":"5511999990000","text":"olá 👋"}}"#;
const T1: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const T2: &str = "whsec_ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";
const T2_SIGNATURE: &str = "v1,Jxjy2oMmRnBAhbeju5lwy6brBMt9penyIbZTj4oI9s0=";
const T7: &str =
    "whsk_QEFCQ0RFRkdISUpLTE1OT1BRUlNUVVZXWFlaW1xdXl8lQ7kv8QlVEUdq3INp223ckzZloRl43aFATuEGbKlVnQ==";
const T7_PUBLIC: &str = "whpk_JUO5L/EJVRFHatyDadtt3JM2ZaEZeN2hQE7hBmypVZ0=";
const T7_SIGNATURE: &str =
    "v1a,nB7A9qGspVQAEkMi5VBkgVUAAnpISK2parr7uVnVDQdWoFjXKnnbQLTT2iEe5zFwxH12r9tgu65eykpJovqlAw==";
const T1_SIGNATURE: &str = "v1,5YFNYlKpt28VZVejVB9//OWgFsEGNBwl6p49kvfvNYM=";

/// Vectors that the official Python, JavaScript and Rust libraries and OpenSSL agree on.
#[test]
fn signs_as_the_official_libraries_do() {
    let t5 = "whsec_+LmzMnWE+jiOdLd1Wfha+5KFzQyE1MQRflZJUU3CNruMVJDr7gTMkMfScNtkBBCq+aSUJYs3UF6+Fwsj8F6aEw==";
    let t6 = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    let t6_body = r#"{"email":"test@example.com","username":"test_user"}"#;
    let t6_id = "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk";
    let vectors = [
        (T1, ID, TIMESTAMP, BODY, T1_SIGNATURE),
        (T2, ID, TIMESTAMP, BODY, T2_SIGNATURE),
        (T1, ID, TIMESTAMP, "", "v1,oqnmWoREW5cKZ9a5pomNOho8oRtqCI+COaZtkyY7jFo="),
        (
            "whsec_H2+m9p0YXmCG0E5zMDYb+QAaO40M5REX",
            ID,
            TIMESTAMP,
            BODY,
            "v1,HKyXYTA8W3h+yAveti6J++fTnpxNQ9uky3Kdq4OBzX0=",
        ),
        (t5, ID, TIMESTAMP, BODY, "v1,BlIXw1RUn1WGlM/JYfOP1tNv45rqMisI3M1wpnD6Bb8="),
        (t6, t6_id, 1_649_367_553, t6_body, "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw="),
    ];
    assert_eq!(BODY.len(), 126);
    for (secret, id, timestamp, body, signature) in vectors {
        let secret = WebhookSecret::parse(secret).unwrap();
        assert_eq!(secret.sign(id, timestamp, body.as_bytes()), signature);
        let official = standardwebhooks::Webhook::new(&secret.reveal()).unwrap();
        assert_eq!(official.sign(id, timestamp, body.as_bytes()).unwrap(), signature);
    }
}

/// The ed25519 vector, which OpenSSL and Python's `cryptography` computed: the same key in both its forms,
/// the same public key and the same signature.
#[test]
fn signs_asymmetrically_as_openssl_does() {
    let seed: [u8; 32] = std::array::from_fn(|index| 0x40 + u8::try_from(index).unwrap());
    let key = SigningKey::from_seed(&seed);
    assert_eq!(key.reveal(), T7);
    assert_eq!(key.public().to_string(), T7_PUBLIC);
    assert_eq!(key.sign(ID, TIMESTAMP, BODY.as_bytes()), T7_SIGNATURE);
    assert!(SigningKey::parse(T7).unwrap() == key);
    let seed_only = format!("whsk_{}", STANDARD.encode(seed));
    assert!(SigningKey::parse(&seed_only).unwrap() == key);
    assert_eq!(PublicKey::parse(T7_PUBLIC).unwrap(), key.public());
}

/// During a rotation with `v1a` the header carries three signatures, and whoever has the old secret, the new
/// secret or the public key accepts it; nobody else does.
#[test]
fn any_holder_of_a_key_accepts_a_rotation() {
    let header = format!("{T2_SIGNATURE} {T1_SIGNATURE} {T7_SIGNATURE}");
    assert_eq!(header.len(), 188);
    let verify = |secrets: &[&str], keys: &[PublicKey], body: &str| {
        let secrets: Vec<_> = secrets.iter().map(|secret| WebhookSecret::parse(secret).unwrap()).collect();
        let headers = WebhookHeaders { id: ID, timestamp: "1735689600", signature: &header };
        verify_webhook_with(&secrets, keys, headers, body.as_bytes(), TIMESTAMP)
    };
    let key = PublicKey::parse(T7_PUBLIC).unwrap();
    assert_eq!(verify(&[T1], &[], BODY), Ok(()));
    assert_eq!(verify(&[T2], &[], BODY), Ok(()));
    assert_eq!(verify(&[], std::slice::from_ref(&key), BODY), Ok(()));
    let other = SigningKey::from_seed(&[7; 32]).public();
    assert_eq!(verify(&[], std::slice::from_ref(&other), BODY), Err(VerifyError::Signature));
    assert_eq!(verify(&[], &[other, key.clone()], BODY), Ok(()));
    assert_eq!(verify(&[], &[key], &BODY.replace("olá", "ola")), Err(VerifyError::Signature));
    assert_eq!(verify(&[], &[], BODY), Err(VerifyError::Signature));
}

/// Of a header full of signatures only the first few are checked, so that it costs little.
#[test]
fn a_flood_of_signatures_is_cut() {
    let key = SigningKey::parse(T7).unwrap();
    let forged = SigningKey::from_seed(&[7; 32]).sign(ID, TIMESTAMP, BODY.as_bytes());
    let verify = |before: usize| {
        let header = [vec![forged.as_str(); before], vec![T7_SIGNATURE]].concat().join(" ");
        let headers = WebhookHeaders { id: ID, timestamp: "1735689600", signature: &header };
        verify_webhook_with(&[], &[key.public()], headers, BODY.as_bytes(), TIMESTAMP)
    };
    assert_eq!(verify(ASYMMETRIC_SIGNATURES_MAX - 1), Ok(()));
    assert_eq!(verify(ASYMMETRIC_SIGNATURES_MAX), Err(VerifyError::Signature));
}

/// Keys of a wrong form are refused, also one whose public half is another key's, and a good one never
/// prints.
#[test]
fn keys_are_checked_and_masked() {
    let mut mixed = STANDARD.decode(T7.strip_prefix("whsk_").unwrap()).unwrap();
    mixed[63] ^= 1;
    let mixed = format!("whsk_{}", STANDARD.encode(mixed));
    for bad in ["", "whsk_", "whsk_AAEC", "whsk_***", T1, T7_PUBLIC, &T7[..T7.len() - 4], &mixed] {
        assert!(SigningKey::parse(bad).is_err(), "{bad}");
    }
    for bad in ["", "whpk_", "whpk_AAEC", T1, T7, &T7_PUBLIC[..T7_PUBLIC.len() - 4]] {
        assert!(PublicKey::parse(bad).is_err(), "{bad}");
    }
    assert_eq!(format!("{:?}", SigningKey::parse(T7).unwrap()), "SigningKey(••••)");
}

/// During a rotation the header carries two signatures, and a receiver with either secret accepts.
#[test]
fn any_fitting_signature_is_enough() {
    let header = format!("v1,AAAA {T1_SIGNATURE} v1a,AAAA");
    let headers = WebhookHeaders { id: ID, timestamp: "1735689600", signature: &header };
    let secrets = [WebhookSecret::parse(T1).unwrap()];
    assert_eq!(verify_webhook(&secrets, headers, BODY.as_bytes(), TIMESTAMP + 300), Ok(()));
}

/// One changed byte, an old timestamp, an empty signature or a missing one is refused.
#[test]
fn forgeries_are_refused() {
    let secrets = [WebhookSecret::parse(T1).unwrap()];
    let verify = |id, timestamp, signature, body: &str, now| {
        verify_webhook(&secrets, WebhookHeaders { id, timestamp, signature }, body.as_bytes(), now)
    };
    let good = |signature| verify(ID, "1735689600", signature, BODY, TIMESTAMP);
    assert_eq!(good(T1_SIGNATURE), Ok(()));
    for signature in ["", "v1,", "v1", T1_SIGNATURE.trim_start_matches("v1,")] {
        assert_eq!(good(signature), Err(VerifyError::Signature), "{signature}");
    }
    let changed = BODY.replace("olá", "ola");
    assert_eq!(verify(ID, "1735689600", T1_SIGNATURE, &changed, TIMESTAMP), Err(VerifyError::Signature));
    assert_eq!(verify("x", "1735689600", T1_SIGNATURE, BODY, TIMESTAMP), Err(VerifyError::Signature));
    assert_eq!(verify(ID, "1735689600", T1_SIGNATURE, BODY, TIMESTAMP + 301), Err(VerifyError::Timestamp));
    assert_eq!(verify(ID, "now", T1_SIGNATURE, BODY, TIMESTAMP), Err(VerifyError::Header(WEBHOOK_TIMESTAMP)));
}

/// Secrets of a wrong form are refused, and a good one never prints.
#[test]
fn secrets_are_checked_and_masked() {
    for bad in ["", "whsec_", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "whsec_AAEC", "whsec_***"] {
        assert_eq!(WebhookSecret::parse(bad), Err(InvalidSecret), "{bad}");
    }
    assert_eq!(format!("{:?}", WebhookSecret::parse(T1).unwrap()), "WebhookSecret(••••)");
}
