#!/usr/bin/env bash
# Prints the failures of a topic with Kafka's own console consumer: headers, key and value, parted by tabs. It ends when
# nothing has come for ten seconds. KAFKA_CONSOLE_CONSUMER is the consumer, if it is not in the path.
#
#   read.sh BROKERS TOPIC [OPTION…]
set -euo pipefail
brokers=$1 topic=$2
shift 2
exec ${KAFKA_CONSOLE_CONSUMER:-kafka-console-consumer.sh} --bootstrap-server "$brokers" --topic "$topic" --from-beginning \
  --isolation-level read_committed --timeout-ms 10000 \
  --formatter-property print.headers=true --formatter-property print.key=true --formatter-property key.separator=$'\t' \
  --formatter-property headers.separator=, "$@"
