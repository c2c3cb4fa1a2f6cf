use super::*;

const RANDOM: &str = "0123456789abcdefghijABCDEFGHIJ";

fn now() -> Timestamp {
    "2026-05-07T10:00:00Z".parse().unwrap()
}

fn key() -> v1::ApiKey {
    v1::ApiKey {
        tenant_id: "acme".into(),
        role: v1::Role::Operator.into(),
        display_name: "CRM".into(),
        ..Default::default()
    }
}

fn fields(key: &v1::ApiKey) -> Vec<String> {
    let read = ApiKey::from_proto(key, now(), |scope| scope == "InstanceService");
    read.unwrap_err().0.into_iter().map(|violation| violation.field).collect()
}

/// The check value of CRC-32/ISO-HDLC (RFC 1952, and every catalogue of CRCs).
#[test]
fn crc32_has_its_check_value() {
    assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    assert_eq!(crc32(b""), 0);
}

/// A secret has the documented form, and every single changed, missing or added character is noticed.
#[test]
fn checksum_notices_every_single_change() {
    let secret = secret(RANDOM);
    assert!(secret.starts_with("wagw_live_") && secret.len() == 46 && is_well_formed(&secret));
    for index in 0..secret.len() {
        let mut changed = secret.clone().into_bytes();
        changed[index] = if changed[index] == b'x' { b'y' } else { b'x' };
        assert!(!is_well_formed(std::str::from_utf8(&changed).unwrap()), "{index}");
    }
    assert!(!is_well_formed(&secret[..45]) && !is_well_formed(&format!("{secret}0")));
    assert!(!is_well_formed("") && !is_well_formed(&format!("wagw_live_{}", "é".repeat(18))));
}

/// A scope opens its service or its method, and nothing that only begins like it.
#[test]
fn scopes_open_what_they_name() {
    let scopes = Scopes::new(&["InstanceService".into(), "OptOutService/CheckSuppression".into()]);
    assert!(scopes.allow("InstanceService/GetInstance") && scopes.allow("OptOutService/CheckSuppression"));
    assert!(!scopes.allow("OptOutService/DeleteOptOut") && !scopes.allow("InstanceServiceX/Get"));
    assert!(!scopes.allow("OptOutService/CheckSuppressionX"));
    assert!(Scopes::default().allow("Anything/AtAll"));
}

/// Scopes include narrower ones; having any never includes everything.
#[test]
fn scopes_include_narrower_ones_only() {
    let scopes = |names: &[&str]| Scopes(names.iter().map(|name| (*name).to_owned()).collect());
    let both = scopes(&["InstanceService", "OptOutService/CheckSuppression"]);
    assert!(both.include(&scopes(&["InstanceService/GetInstance"])) && both.include(&both));
    assert!(!both.include(&scopes(&["OptOutService"])) && !both.include(&Scopes::default()));
    assert!(Scopes::default().include(&both) && Scopes::default().include(&Scopes::default()));
}

/// Every bad field of a key is named; a platform admin's key has no tenant, others must have one.
#[test]
fn bad_keys_are_refused() {
    let at = |text: &str| Some(time::to_proto(text.parse().unwrap()));
    let is_method = |scope: &str| scope == "InstanceService";
    let good = v1::ApiKey { scopes: vec!["InstanceService".into()], ..key() };
    let read = ApiKey::from_proto(&good, now(), is_method).unwrap();
    assert_eq!((read.role, read.tenant_id.unwrap().as_str()), (Role::Operator, "acme"));
    let platform = v1::ApiKey { tenant_id: String::new(), role: v1::Role::PlatformAdmin.into(), ..key() };
    assert_eq!(ApiKey::from_proto(&platform, now(), is_method).unwrap().tenant_id, None);

    assert_eq!(fields(&v1::ApiKey { role: v1::Role::PlatformAdmin.into(), ..key() }), ["api_key.tenant_id"]);
    assert_eq!(fields(&v1::ApiKey { tenant_id: String::new(), ..key() }), ["api_key.tenant_id"]);
    assert_eq!(fields(&v1::ApiKey { role: 99, ..key() }), ["api_key.role"]);
    assert_eq!(fields(&v1::ApiKey { display_name: String::new(), ..key() }), ["api_key.display_name"]);
    let scopes = vec!["InstanceService".into(), "AgentSyncService".into()];
    assert_eq!(fields(&v1::ApiKey { scopes, ..key() }), ["api_key.scopes[1]"]);
    let scopes = vec!["InstanceService".into(); SCOPES_MAX + 1];
    assert_eq!(fields(&v1::ApiKey { scopes, ..key() }), ["api_key.scopes"]);
    for bad in ["2026-05-07T10:00:00Z", "2020-01-01T00:00:00Z", "2036-05-07T10:00:01Z"] {
        assert_eq!(fields(&v1::ApiKey { expire_time: at(bad), ..key() }), ["api_key.expire_time"], "{bad}");
    }
    let latest = v1::ApiKey { expire_time: at("2036-05-07T10:00:00Z"), ..key() };
    assert!(ApiKey::from_proto(&latest, now(), is_method).is_ok());
}

/// Roles are in order, and numbers that this program does not know are no role.
#[test]
fn roles_are_ordered_and_closed() {
    assert!(Role::ALL.windows(2).all(|pair| pair[0] < pair[1]));
    for role in Role::ALL {
        assert_eq!(Role::from_proto(role.to_proto().into()), Some(role));
    }
    assert_eq!((Role::from_proto(0), Role::from_proto(99)), (None, None));
}
