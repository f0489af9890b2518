//! The id of a connection that a worker holds, as its client hears it.

use crate::runtime::entry::ConnId;
use crate::runtime::identity::id_of;
use crate::runtime::state::State;

pub fn connection_id(state: &State, conn: ConnId) -> String {
    id_of(&state.node.secret, state.index, conn)
}
