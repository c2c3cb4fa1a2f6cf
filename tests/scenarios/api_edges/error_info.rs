//! Whoever refuses, a method, the check of credentials or the server itself, says why in a form for programs.

use gateway_tests::{ControlPlane, World};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{REFLECTION, call, channel, declared_methods};

fn assert_explained(path: &str, status: &Status) {
    let info = status.get_error_details().error_info().cloned();
    let info = info.unwrap_or_else(|| panic!("{path} refuses without a reason: {status:?}"));
    let is_constant =
        info.reason.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_' || byte.is_ascii_digit());
    assert!(info.domain == "whatsapp-gateway" && is_constant && !info.reason.is_empty(), "{path}: {info:?}");
    assert!(!status.message().is_empty(), "{path} refuses without words: {status:?}");
}

/// Every declared method, called without a key, with a wrong one, with an agent's affair by an operator and with
/// an empty message, and a method that nobody declares: each refusal has an `ErrorInfo` with a reason of this
/// gateway; bad input also names its fields.
#[tokio::test]
async fn every_refusal_has_a_reason() {
    let world = World::start().await.unwrap();
    let channel = channel(&world.control_plane).await.unwrap();
    let key = format!("Bearer {}", world.control_plane.admin_key());
    let mut paths = declared_methods().unwrap();
    paths.extend(REFLECTION.map(str::to_owned));
    paths.push("/whatsapp_gateway.v1.InstanceService/Unheard".to_owned());
    paths.push("/whatsapp_gateway.v1.UnheardService/Unheard".to_owned());
    let mut invalid = 0;
    for path in &paths {
        for authorization in [None, Some("Bearer wrong-key-wrong-key"), Some(key.as_str())] {
            // Reflection is a library's: it says nothing to programs once it is reached.
            if authorization == Some(key.as_str()) && REFLECTION.contains(&path.as_str()) {
                continue;
            }
            let Some(status) = call(&channel, path, authorization).await.unwrap() else { continue };
            if status.code() == Code::Ok {
                continue;
            }
            assert_explained(path, &status);
            if status.code() == Code::InvalidArgument {
                let details = status.get_error_details();
                assert!(details.bad_request().is_some_and(|bad| !bad.field_violations.is_empty()), "{path}");
                invalid += 1;
            }
        }
    }
    assert!(invalid > 10, "only {invalid} methods refuse an empty message");
}

/// A call while the control plane is stopping, or to one that is gone, fails as something to try again.
#[tokio::test]
async fn a_stopped_control_plane_is_unavailable() {
    let directory = tempfile::tempdir().unwrap();
    let mut control_plane = ControlPlane::start(directory.path()).await.unwrap();
    control_plane.stop().await.unwrap();
    let request = gateway_proto::v1::ListInstancesRequest::default();
    let status = control_plane.client().instances().list_instances(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}
