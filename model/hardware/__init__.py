"""What a GPU or a link is: data sheets, one file of `presets` each."""
