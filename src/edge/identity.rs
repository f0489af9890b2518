//! Connection ids: what `$open` and `open` give. Nobody can guess one, and nothing is kept for it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha1::{Digest, Sha1};

use crate::runtime::entry::ConnId;
use crate::runtime::state::State;

/// The id of a connection: where it is, and a seal that only this process can make.
pub fn connection_id(state: &State, conn: ConnId) -> String {
    let mut place = Vec::with_capacity(10);
    place.extend_from_slice(&state.index.to_be_bytes());
    place.extend_from_slice(&conn.slot.to_be_bytes());
    place.extend_from_slice(&conn.generation.to_be_bytes());
    // The secret on both sides of a message of fixed length: nothing can be appended to it.
    let seal =
        Sha1::new().chain_update(state.node.secret).chain_update(&place).chain_update(state.node.secret);
    place.extend_from_slice(&seal.finalize()[..14]);
    URL_SAFE_NO_PAD.encode(place)
}
