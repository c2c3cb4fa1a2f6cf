//! Settings in layers: flag over environment over TOML file over default.
//!
//! A program declares one struct of optional fields that derives both `clap::Args` (flags and environment)
//! and `serde::Deserialize` with `deny_unknown_fields` (file), and implements [`Layer`] with [`crate::layer!`].

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, de::DeserializeOwned};

/// Exit code of a bad configuration: `EX_USAGE` of sysexits.h.
pub const EXIT_BAD_CONFIG: u8 = 64;

/// One layer of settings, laid over another.
pub trait Layer: Sized {
    /// `self` where it is set, `below` where it is not.
    #[must_use]
    fn over(self, below: Self) -> Self;
}

/// Implements [`Layer`] for a struct of `Option` and `Vec` fields, all of which must be named.
#[macro_export]
macro_rules! layer {
    ($name:ident { options: [$($option:ident),* $(,)?], lists: [$($list:ident),* $(,)?] $(,)? }) => {
        impl $crate::config::Layer for $name {
            fn over(self, below: Self) -> Self {
                Self {
                    $($option: self.$option.or(below.$option),)*
                    $($list: if self.$list.is_empty() { below.$list } else { self.$list },)*
                }
            }
        }
    };
}

/// Why a settings file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadFileError {
    /// It cannot be read.
    #[error("read settings file `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not TOML, or has a key that is not a setting.
    #[error("parse settings file `{path}`")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
}

/// Reads a TOML settings file. Unknown keys fail.
///
/// # Errors
/// When it cannot be read or parsed.
pub fn load_file<T: DeserializeOwned>(path: &Path) -> Result<T, LoadFileError> {
    let text =
        fs::read_to_string(path).map_err(|source| LoadFileError::Read { path: path.into(), source })?;
    toml::from_str(&text)
        .map_err(|source| LoadFileError::Parse { path: path.into(), source: Box::new(source) })
}

/// A duration written with its unit: `250ms`, `10s`, `5m`, `2h`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

/// A size written with its unit: `64KiB`, `512MiB`, `4GiB`, or plain bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

/// A value with a unit that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct BadUnit {
    text: String,
    expected: &'static str,
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

impl std::str::FromStr for Span {
    type Err = BadUnit;

    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let bad = || BadUnit {
            text: text.to_owned(),
            expected: "a duration such as `250ms`, `10s`, `5m`, `2h` or `7d`",
        };
        let (number, unit) = split_unit(text.trim());
        let number: u64 = number.parse().map_err(|_| bad())?;
        let milliseconds = match unit {
            "ms" => Some(number),
            "s" => number.checked_mul(1_000),
            "m" => number.checked_mul(60_000),
            "h" => number.checked_mul(3_600_000),
            "d" => number.checked_mul(86_400_000),
            _ => None,
        };
        milliseconds.map(|milliseconds| Self(Duration::from_millis(milliseconds))).ok_or_else(bad)
    }
}

impl std::str::FromStr for Bytes {
    type Err = BadUnit;

    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let bad = || BadUnit {
            text: text.to_owned(),
            expected: "a size such as `65536`, `64KiB`, `512MiB` or `4GiB`",
        };
        let (number, unit) = split_unit(text.trim());
        let number: u64 = number.parse().map_err(|_| bad())?;
        let factor = match unit {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(bad()),
        };
        number.checked_mul(factor).map(Self).ok_or_else(bad)
    }
}

macro_rules! from_text {
    ($($name:ident),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

from_text!(Span, Bytes);

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Settings {
        wait: Option<Span>,
        size: Option<Bytes>,
        names: Vec<String>,
    }
    layer!(Settings { options: [wait, size], lists: [names] });

    fn file(text: &str) -> Result<Settings, LoadFileError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("settings.toml");
        fs::write(&path, text).unwrap();
        load_file(&path)
    }

    /// What is set above wins, what is not comes from below.
    #[test]
    fn layers_fall_through() {
        let above = Settings { wait: Some(Span(Duration::from_secs(1))), ..Settings::default() };
        let below = file("wait = '2m'\nsize = '64MiB'\nnames = ['a']").unwrap();
        let merged = above.over(below);
        assert_eq!(merged.wait, Some(Span(Duration::from_secs(1))));
        assert_eq!(merged.size, Some(Bytes(64 << 20)));
        assert_eq!(merged.names, ["a"]);
    }

    /// A misspelt key or a value without a unit names itself in the error.
    #[test]
    fn bad_files_say_what_is_wrong() {
        for (text, expected) in [("weit = '2m'", "weit"), ("wait = '2'", "`2`"), ("size = '5MB'", "5MB")] {
            let error = file(text).unwrap_err();
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains(expected), "{source}");
        }
    }
}
