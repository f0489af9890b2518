//! The id of a connection, as its client hears it and says it again.

use crate::domain::home::WorkerIndex;
use crate::runtime::entry::ConnId;
use crate::runtime::identity::{id_of, read_id};
use crate::runtime::node::Node;
use crate::runtime::state::State;

pub fn connection_id(state: &State, conn: ConnId) -> String {
    id_of(&state.node.secret, state.index, conn)
}

/// Where the connection of an id is, or was. `None`: this process never gave that id.
pub fn find_connection(node: &Node, id: &str) -> Option<(WorkerIndex, ConnId)> {
    read_id(&node.secret, id)
}
