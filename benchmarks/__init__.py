"""What ipytaskpersist costs, measured through real kernels beside what else there is."""
