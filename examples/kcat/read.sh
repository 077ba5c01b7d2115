#!/usr/bin/env bash
# Prints the failures of a topic, one JSON object a line, and ends at the end of the topic. Takes kcat.
#
#   read.sh BROKERS TOPIC [OPTION…]     options of kcat, such as -X security.protocol=SSL
set -euo pipefail
brokers=$1 topic=$2
shift 2
# read_committed leaves out what a crash has cut short. Without -e it goes on for ever.
exec kcat -b "$brokers" -C -t "$topic" -o beginning -e -q -J -X isolation.level=read_committed "$@"
