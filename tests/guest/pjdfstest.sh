# Runs pjdfstest on the share. The verdict is drawn on the host, from the lines printed here.
mkdir /mnt/pjdfstest
chmod 755 /mnt/pjdfstest
NO_COLOR=1 /root/pjdfstest -c /root/pjdfstest.toml -p /mnt/pjdfstest
echo "pjdfstest ended with status $?"
