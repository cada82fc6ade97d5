// Packets to pictures, with the times that the packets carry.
#pragma once

#include <optional>

#include "video/demuxer.h"

namespace vidkv::cli {

class Decoder {
  public:
    Decoder(const Demuxer & demuxer, int threads);

    // Gives it a packet, or nothing at the end of the stream. False if the packet could not be decoded.
    bool send(const AVPacket * packet);
    // A decoded frame, or nothing if it needs more packets.
    FramePtr receive();
    // After a seek.
    void flush();
    // Leave out what no other picture is made from, of the packets sent from now on.
    void skip_unreferenced(bool skip);

    bool every_packet_alone() const; // each picture is decoded without others
    bool damaged() const { return damaged_; }

  private:
    CodecContext codec_;
    bool damaged_ = false;
};

} // namespace vidkv::cli
