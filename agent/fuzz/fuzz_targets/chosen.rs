use std::sync::LazyLock;

use gateway_core::event::Provider;

/// Which provider to work on, by its name: so that two programs serve all providers.
const VARIABLE: &str = "GATEWAY_FUZZ_PROVIDER";

/// The provider that the environment names.
///
/// # Panics
/// When it names none.
pub fn provider() -> Provider {
    static CHOSEN: LazyLock<Provider> = LazyLock::new(|| {
        let name = std::env::var(VARIABLE).unwrap_or_default();
        Provider::from_name(&name).unwrap_or_else(|| panic!("{VARIABLE} must name a provider"))
    });
    *CHOSEN
}
