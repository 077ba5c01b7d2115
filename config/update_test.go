package config_test

import "flag"

var update = flag.Bool("update", false, "write the settings into the README")
