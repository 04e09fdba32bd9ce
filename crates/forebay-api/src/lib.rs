//! Versioned wire types and the client of the daemon's socket.
