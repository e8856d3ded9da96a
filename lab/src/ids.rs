//! Names that no other run has: pod UIDs and container ids.

use anyhow::{Context, Result};

/// The first eight hex digits of every UID that the lab makes up.
pub const UID_PREFIX: &str = "0b5e7e57";

const SOURCE: &str = "/proc/sys/kernel/random/uuid";

/// A random pod UID that starts with [`UID_PREFIX`].
pub fn pod_uid() -> Result<String> {
    let uuid = random_uuid()?;
    let tail = uuid.split_once('-').map_or("0000-0000-0000-000000000000", |(_, tail)| tail);
    Ok(format!("{UID_PREFIX}-{tail}"))
}

/// A random container id: 64 hex digits.
pub fn container_id() -> Result<String> {
    Ok(format!("{}{}", random_uuid()?, random_uuid()?).replace('-', ""))
}

fn random_uuid() -> Result<String> {
    let text = std::fs::read_to_string(SOURCE)
        .with_context(|| format!("reading a random id from {SOURCE} (is /proc mounted?)"))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_the_shape_of_real_ones() {
        let uid = pod_uid().unwrap();
        assert_eq!(uid.len(), 36);
        assert!(uid.starts_with("0b5e7e57-"));
        let id = container_id().unwrap();
        assert_eq!(id.len(), 64);
        assert!(id.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(id, container_id().unwrap());
    }
}
