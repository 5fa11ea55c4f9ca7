//! Where the process that has a configuration listens: everywhere once.

use std::net::SocketAddr;

use super::{ConfigError, Loaded, Origin, key::KEYS};
use crate::shed::clash;

/// An address, and the place that says that it is listened on.
pub(super) type Listening = (SocketAddr, String);

impl Loaded {
    /// Notes that the process listens on `address`, as `place` says: file, line, column and key; or
    /// flag.
    ///
    /// # Errors
    /// It cannot, since it listens there already.
    pub fn listens(&mut self, address: SocketAddr, place: String) -> Result<(), ConfigError> {
        if let Some((taken, by)) = self.listening.iter().find(|(taken, _)| clash(*taken, address)) {
            return Err(ConfigError::Value {
                place,
                got: address.to_string(),
                expected: format!("another address than {taken} of {by}"),
            });
        }
        self.listening.push((address, place));
        Ok(())
    }

    /// Checks that the daemon can listen on `listen` beside the rest. Not a part of loading, since
    /// not all that loads serves there.
    ///
    /// # Errors
    /// A shedding listener has the address.
    pub fn check_listen(&mut self) -> Result<(), ConfigError> {
        let from = KEYS.iter().zip(&self.origins).find(|(key, _)| key.name == "listen");
        let place = match from {
            Some((_, from @ Origin::File { .. })) => format!("{from}: listen"),
            Some((_, from @ (Origin::Environment { .. } | Origin::Flag { .. }))) => {
                from.to_string()
            }
            Some((_, Origin::Default)) | None => "listen, as it is unsaid".to_owned(),
        };
        self.listens(self.config.listen, place)
    }
}
