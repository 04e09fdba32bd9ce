use forebay_api::Client;

use crate::cli::Failure;

pub(crate) async fn run(_client: &Client) -> Result<(), Failure> {
    Ok(())
}
