"""The pages of the documentation's site that are made from the code: reference, results, project pages."""
