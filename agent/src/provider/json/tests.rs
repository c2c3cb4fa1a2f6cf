use super::*;

fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap()
}

/// Whatever a provider writes instead of the documented type is read, or is absent; nothing fails.
#[test]
fn fields_of_any_type_are_read() {
    let json =
        raw(r#"{"a":1,"a":"two","n":16505551234,"big":1e999,"neg":-0,"null":null,"empty":"","t":"true",
            "escaped\u0020key":"x","\ud800":1,"lone":"a\ud83db","lat":"24.5","list":[1,{}],"nan":"NaN"}"#);
    let fields = Fields::of(&json).unwrap();
    assert_eq!(fields.text("a").as_deref(), Some("two"));
    assert_eq!(fields.name("n").as_deref(), Some("16505551234"));
    assert_eq!(fields.integer("n"), Some(16_505_551_234));
    let integers = raw(r#"[131026.0, "131026.0", " 131026 ", 1.31026e5, 131026.5, 1e300, "NaN", true]"#);
    let integers: Vec<_> = elements(&integers).unwrap().into_iter().map(integer).collect();
    assert_eq!(integers[..4], [Some(131_026); 4]);
    assert_eq!(integers[4..], [None; 4]);
    assert_eq!((fields.integer("big"), fields.number("big"), fields.time("big")), (None, None, None));
    assert_eq!(fields.name("big").as_deref(), Some("1e999"));
    assert!(fields.get("null").is_none() && fields.get("missing").is_none());
    assert_eq!((fields.text("empty").as_deref(), fields.name("empty")), (Some(""), None));
    assert_eq!(fields.truth("t"), Some(true));
    assert_eq!(fields.name("escaped key").as_deref(), Some("x"));
    assert!(fields.text("lone").unwrap().starts_with("a\u{fffd}"));
    assert_eq!((fields.number("lat"), fields.number("nan")), (Some(24.5), None));
    assert_eq!(fields.array("list").unwrap().len(), 2);
    assert!(fields.object("list").is_none() && fields.array("a").is_none() && fields.text("list").is_none());
    for other in ["[]", "1", "\"x\"", "null", "true"] {
        assert!(Fields::of(&raw(other)).is_none(), "{other}");
    }
}

/// A phone number that is written as a float is the number; other numbers are as they are written.
#[test]
fn floats_name_people() {
    let json = raw(
        r#"{"a":16505551234.0,"b":1.6505551234e10,"c":16505551234,"d":"16505551234.0","e":1.5,"f":"US.1"}"#,
    );
    let fields = Fields::of(&json).unwrap();
    let named = ["a", "b", "c", "d", "e", "f"].map(|name| fields.identifier(name));
    let named = named.each_ref().map(|name| name.as_deref().unwrap());
    assert_eq!(named[..3], ["16505551234"; 3]);
    assert_eq!(named[3..], ["16505551234.0", "1.5", "US.1"]);
}

/// What has very many fields or elements costs no more than what has many.
#[test]
fn lists_and_fields_are_bounded() {
    let fields = |count| raw(&format!("{{{}}}", vec![r#""a":1"#; count].join(",")));
    assert!(Fields::of(&fields(FIELDS_MAX)).is_some());
    assert!(Fields::of(&fields(FIELDS_MAX + 1)).is_none());
    let list = |count| raw(&format!("[{}]", vec!["1"; count].join(",")));
    assert_eq!(elements(&list(ITEMS_MAX)).unwrap().len(), ITEMS_MAX);
    assert_eq!(elements(&list(ITEMS_MAX + 2)).unwrap().len(), ITEMS_MAX + 1);
}

/// A struct is not read from a list, at no depth.
#[test]
fn lists_are_no_objects() {
    #[derive(serde::Deserialize)]
    struct Pair {
        a: Option<i64>,
        b: Option<Vec<Object<Pair>>>,
    }
    let Object(pair) = serde_json::from_str::<Object<Pair>>(r#"{"b":[{"a":1}]}"#).unwrap();
    assert_eq!((pair.a, pair.b.unwrap()[0].0.a), (None, Some(1)));
    for json in ["[1,null]", r#"{"b":[[1,null]]}"#, "1", "null"] {
        assert!(serde_json::from_str::<Object<Pair>>(json).is_err(), "{json}");
    }
}

/// A body is JSON as every receiver reads it: control characters stand in escapes, in names too.
#[test]
fn bodies_are_json() {
    for json in ["{}", " {\"a\":[{}]}\n", r#"{"a\u0001\n":1}"#] {
        assert!(Fields::of_body(json).is_some(), "{json}");
    }
    for other in ["", "[]", "{", "{}{}", "{\"a\u{1}\":1}", "{\"a\\n\u{1}\":1}", "{\"a\":\"\u{1}\"}"] {
        assert!(Fields::of_body(other).is_none(), "{other}");
    }
}

/// Values nested too deep become text, values too large are cut with a mark, all others stay as written.
#[test]
fn kept_values_can_be_parsed_by_everybody() {
    let same = r#"{"b": 18446744073709551616,  "a":"\ud83d\uded1 [[[["}"#;
    assert_eq!(kept(&raw(same)).get(), same);
    for hostile in [r#"{"a":1e999}"#, r#"{"a":"\ud83d"}"#, r#"{"\ud83d":[]}"#] {
        assert_eq!(serde_json::from_str::<String>(kept(&raw(hostile)).get()).unwrap(), hostile);
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(serde_json::from_str::<String>(kept(&raw(&deep)).get()).unwrap(), deep);
    let large = format!("\"{}\"", "é".repeat(RAW_BYTES_MAX));
    let cut: serde_json::Value = serde_json::from_str(kept(&raw(&large)).get()).unwrap();
    assert_eq!(cut["truncated"], true);
    assert_eq!(cut["bytes"], large.len());
    assert!(large.starts_with(cut["beginning"].as_str().unwrap()));
}

/// Parts cannot run into each other.
#[test]
fn identity_keeps_parts_apart() {
    assert_ne!(identity(&["a", "b"]), identity(&["ab", ""]));
    assert_eq!(identity(&["a"]).len(), 64);
}
