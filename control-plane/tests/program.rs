//! The program itself: exit codes and what it says before it serves.

use std::process::{Command, Output};

fn run(arguments: &[&str], admin_key: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway-control-plane"));
    command.args(arguments).env_remove("GATEWAY_CONTROL_PLANE_ADMIN_KEY");
    if let Some(key) = admin_key {
        command.env("GATEWAY_CONTROL_PLANE_ADMIN_KEY", key);
    }
    command.output().expect("the program was built for this test")
}

/// A bad configuration exits 64 and says what to do, before any port is bound; a key is never repeated.
#[test]
fn bad_configuration_exits_64() {
    let public = ["--grpc-listen", "0.0.0.0:0"];
    for (arguments, key, hint) in [
        (&["--no-such-flag"][..], None, "--no-such-flag"),
        (&["--grpc-listen", "nonsense"], None, "--grpc-listen"),
        (&public, None, "TLS proxy"),
        (&["--config", "/nowhere/control-plane.toml"], None, "/nowhere/control-plane.toml"),
        (&["--log-filter", "=,=nonsense"], None, "log filter"),
        (&[], Some("planted"), "16 bytes"),
    ] {
        let output = run(arguments, key);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {said}");
        assert!(said.contains(hint), "{said}");
        assert!(!said.contains("planted"), "{said}");
    }
}

/// Help and version are no failure; help names the environment variable and the exit codes.
#[test]
fn help_succeeds() {
    for argument in ["--help", "--version"] {
        let output = run(&[argument], None);
        assert!(output.status.success() && !output.stdout.is_empty());
    }
    let help = run(&["--help"], None).stdout;
    let help = String::from_utf8_lossy(&help);
    for named in ["GATEWAY_CONTROL_PLANE_ADMIN_KEY", "Exit codes", "64"] {
        assert!(help.contains(named), "{help}");
    }
}
