//! The configuration file, as arguments.
//!
//! TOML keys are flag names; what the flags mean, which values they take and their defaults is known to clap
//! alone. Each key is checked by itself, so that an error names the file and the key.

use std::{any::TypeId, ffi::OsString, fs, path::Path};

use clap::{Arg, ArgAction, Command, builder::ValueParser};
use toml::Value;

use super::nearest::nearest;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration file {path} (--config): {source}; check the path and its permissions")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not TOML.
    #[error("the configuration file {path} is not valid TOML: {message}")]
    Syntax {
        /// The file.
        path: String,
        /// What the parser said, with line and column.
        message: String,
    },
    /// It has a key that is not an option.
    #[error("the configuration file {path} has an unknown key `{key}`{hint}; `observer run --help` lists all")]
    UnknownKey {
        /// The file.
        path: String,
        /// The dotted key.
        key: String,
        /// `; did you mean …?` or empty.
        hint: String,
    },
    /// A value cannot be what the option takes.
    #[error("the configuration file {path}: `{key}` {message}")]
    Value {
        /// The file.
        path: String,
        /// The dotted key.
        key: String,
        /// What is wrong and what a good value looks like.
        message: String,
    },
}

/// Reads `path` and turns it into arguments for `command`, in the form `--key=value`.
///
/// # Errors
/// See [`ConfigError`]: unreadable, not TOML, an unknown key, a value of the wrong type or out of range.
pub fn arguments(path: &Path, command: &Command) -> Result<Vec<OsString>, ConfigError> {
    let text =
        fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.display().to_string(), source })?;
    parse(&text, &path.display().to_string(), command)
}

/// [`arguments`] for text that was read already; `path` is for errors only. Pure.
fn parse(text: &str, path: &str, command: &Command) -> Result<Vec<OsString>, ConfigError> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| ConfigError::Syntax {
        path: path.to_owned(),
        message: e.to_string().trim_end().to_owned(),
    })?;
    let mut leaves = Vec::new();
    flatten("", &table, &mut leaves);
    let mut arguments = Vec::with_capacity(leaves.len());
    for (key, value) in leaves {
        let Some(arg) = options(command).find(|arg| arg.get_long() == Some(key.as_str())) else {
            let hint = nearest(&key, options(command).filter_map(Arg::get_long))
                .map_or_else(String::new, |known| format!("; did you mean `{known}`?"));
            return Err(ConfigError::UnknownKey { path: path.to_owned(), key, hint });
        };
        let invalid = |message| ConfigError::Value { path: path.to_owned(), key: key.clone(), message };
        let Some(argument) = argument(arg, &key, value).map_err(invalid)? else { continue };
        let alone = [OsString::from(command.get_name()), argument.clone()];
        command.clone().try_get_matches_from(alone).map_err(|e| invalid(refusal(&e)))?;
        arguments.push(argument);
    }
    Ok(arguments)
}

/// What the file may set: every long option but the file itself and what only prints.
fn options(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| {
        !matches!(arg.get_long(), None | Some("config"))
            && !matches!(
                arg.get_action(),
                ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
            )
    })
}

/// Every value that is not a table, with its dotted key.
fn flatten<'a>(prefix: &str, table: &'a toml::Table, leaves: &mut Vec<(String, &'a Value)>) {
    for (key, value) in table {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(table) => flatten(&key, table, leaves),
            leaf => leaves.push((key, leaf)),
        }
    }
}

/// The argument for one key, `None` for a switch that is off.
fn argument(arg: &Arg, key: &str, value: &Value) -> Result<Option<OsString>, String> {
    let wrong = |expected: &str| Err(format!("must be {expected}, but is {}", describe(value)));
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return match value {
            Value::Boolean(on) => Ok(on.then(|| format!("--{key}").into())),
            _ => wrong("true or false"),
        };
    }
    let text = match (is_integer(arg.get_value_parser()), value) {
        (true, Value::Integer(number)) => number.to_string(),
        (false, Value::String(text)) => text.clone(),
        (true, _) => return wrong("a whole number without quotes"),
        (false, _) => return wrong("text in quotes"),
    };
    Ok(Some(format!("--{key}={text}").into()))
}

fn is_integer(parser: &ValueParser) -> bool {
    let id = parser.type_id();
    [
        TypeId::of::<u8>(),
        TypeId::of::<u16>(),
        TypeId::of::<u32>(),
        TypeId::of::<u64>(),
        TypeId::of::<usize>(),
        TypeId::of::<i32>(),
        TypeId::of::<i64>(),
    ]
    .iter()
    .any(|integer| id == *integer)
}

fn describe(value: &Value) -> String {
    match value {
        Value::String(text) => format!("the text {text:?}"),
        Value::Integer(number) => format!("the number {number}"),
        Value::Float(number) => format!("the number {number}"),
        Value::Boolean(on) => format!("{on}"),
        Value::Datetime(date) => format!("the date {date}"),
        Value::Array(_) => "a list".to_owned(),
        Value::Table(_) => "a table".to_owned(),
    }
}

/// The first paragraph of clap's own message, on one line: what was given and what is allowed.
fn refusal(error: &clap::Error) -> String {
    let text = error.to_string();
    let body = text.split("\n\nFor more information").next().unwrap_or(&text);
    let body = body.strip_prefix("error: ").unwrap_or(body);
    format!("is refused: {}", body.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
