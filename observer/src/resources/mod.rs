//! CPU, memory and processes of every container, read from cgroup files when the scrape comes.
