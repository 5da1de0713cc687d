#!/bin/bash
# Ends every process that works in a folder, once nobody holds the other end of this script's standard input any more: the program that
# started them ended, by whatever means. Then the folder is removed, or all of it but the logs, or nothing.
#
#   guard.sh all|data|nothing FOLDER PATTERN PATTERN [PREFIX...]     the patterns match the folder and what is below it, for find -lname;
#                                                               the prefix runs a command as the servers' account
while read -r _; do :; done

remove=$1 folder=$2 same=$3 below=$4
shift 4

working() { "$@" find /proc -mindepth 2 -maxdepth 2 -name cwd -lname "$same" -o -name cwd -lname "$below" 2>/dev/null; }

for ((round = 0; round < 400; round++)); do
    # The kernel tells a process's folder to the same account only, so both are asked.
    found=$(working; [ $# -eq 0 ] || working "$@")
    [ -n "$found" ] || break
    ended=0
    for link in $found; do
        pid=${link#/proc/}
        pid=${pid%/cwd}
        read -r stat 2>/dev/null <"/proc/$pid/stat" || continue
        read -r _ _ _ _ terminal _ <<<"${stat##*)}"
        # Somebody's shell is no server.
        [ "$terminal" = 0 ] || continue
        kill -KILL "$pid" 2>/dev/null
        ended=1
    done
    [ $ended = 1 ] || break
    sleep 0.02
done

# A killed PostgreSQL leaves its shared memory segment behind; line 7 of its postmaster.pid tells the key and the id.
for file in "$folder"/*/data/postmaster.pid; do
    [ -f "$file" ] || continue
    { for _ in 1 2 3 4 5 6; do read -r _; done; read -r key id _; } <"$file"
    while read -r used_key used_id _ _ _ _ attached _; do
        if [ -n "$id" ] && [ "$used_key $used_id $attached" = "$key $id 0" ]; then ipcrm -m "$id" 2>/dev/null; fi
    done </proc/sysvipc/shm
done
case $remove in
    all) rm -rf -- "$folder" ;;
    data) rm -rf -- "$folder"/*/ ;;
esac
