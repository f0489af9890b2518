//! Connection ids: what `$open` and `open` give, and operators name connections by. Nobody can guess one, and nothing is
//! kept for it: it says where the connection is.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha1::{Digest, Sha1};

use crate::domain::home::WorkerIndex;

use super::entry::ConnId;

/// Keeps ids unguessable.
pub type Secret = [u8; 20];

const PLACE_BYTES: usize = 10;
const SEAL_BYTES: usize = 14;

/// The id of a connection: where it is, and a seal that only this process can make.
pub fn id_of(secret: &Secret, worker: WorkerIndex, conn: ConnId) -> String {
    let mut id = [0; PLACE_BYTES + SEAL_BYTES];
    id[..2].copy_from_slice(&worker.to_be_bytes());
    id[2..6].copy_from_slice(&conn.slot.to_be_bytes());
    id[6..PLACE_BYTES].copy_from_slice(&conn.generation.to_be_bytes());
    let seal = seal(secret, &id[..PLACE_BYTES]);
    id[PLACE_BYTES..].copy_from_slice(&seal);
    URL_SAFE_NO_PAD.encode(id)
}

/// The worker and the connection that an id of this process names, whether or not it still is.
pub fn read_id(secret: &Secret, text: &str) -> Option<(WorkerIndex, ConnId)> {
    use subtle::ConstantTimeEq;
    let id: [u8; PLACE_BYTES + SEAL_BYTES] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
    let (place, given) = id.split_at(PLACE_BYTES);
    if !bool::from(seal(secret, place).ct_eq(given)) {
        return None;
    }
    let worker = u16::from_be_bytes(place.get(..2)?.try_into().ok()?);
    let slot = u32::from_be_bytes(place.get(2..6)?.try_into().ok()?);
    let generation = u32::from_be_bytes(place.get(6..)?.try_into().ok()?);
    Some((worker, ConnId { slot, generation }))
}

fn seal(secret: &Secret, place: &[u8]) -> [u8; SEAL_BYTES] {
    // The secret on both sides of a message of fixed length: nothing can be appended to it.
    let digest = Sha1::new().chain_update(secret).chain_update(place).chain_update(secret).finalize();
    std::array::from_fn(|at| digest[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_where_they_were_made_alone() {
        let conn = ConnId { slot: 7, generation: 9 };
        let id = id_of(&[1; 20], 3, conn);
        assert_eq!(read_id(&[1; 20], &id), Some((3, conn)));
        assert_eq!(read_id(&[2; 20], &id), None);
        let other = id_of(&[1; 20], 3, ConnId { slot: 8, generation: 9 });
        let forged = format!("{}{}", &other[..13], &id[13..]);
        assert_eq!(read_id(&[1; 20], &forged), None);
        for wrong in ["", "x", &id[1..], &format!("{id}A")] {
            assert_eq!(read_id(&[1; 20], wrong), None, "{wrong}");
        }
    }
}
