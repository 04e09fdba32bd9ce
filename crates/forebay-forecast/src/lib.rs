//! Pure numerics: series in, quantiles out.
