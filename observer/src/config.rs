//! What a run of the agent is told: flags and the configuration file.
