import IntFlashAttention
import Testing

/// Every bit pattern of the small formats, and rounding between neighbours.
@Suite struct StorageFormatTests {
  @Test func everyFloat8RoundTrips() {
    for bits in UInt8.min...UInt8.max {
      let value = Float8(bitPattern: bits)
      if bits & 0x7F == 0x7F {
        #expect(value.float.isNaN)
        continue
      }
      #expect(Float8(value.float) == value)
    }
    #expect(Float8(bitPattern: 0x7E).float == 448)
    #expect(Float8(bitPattern: 0x08).float == 0x1p-6)
    #expect(Float8(bitPattern: 0x01).float == 0x1p-9)
    #expect(Float8(1000).float == 448)
    #expect(Float8(-.infinity).float == -448)
    #expect(Float8(.nan).float.isNaN)
  }

  @Test func float8RoundsToTheNearestTiesToEven() {
    for bits in UInt8(0)..<0x7E {
      let (low, high) = (Float8(bitPattern: bits).float, Float8(bitPattern: bits + 1).float)
      let middle = (low + high) / 2
      #expect(Float8(middle.nextDown).float == low)
      #expect(Float8(middle.nextUp).float == high)
      #expect(Float8(middle).bitPattern == (bits & 1 == 0 ? bits : bits + 1))
      #expect(Float8(-middle.nextUp).float == -high)
    }
  }

  @Test func everyHalfRoundTrips() {
    for bits in UInt16.min...UInt16.max {
      let value = Half.float(bits)
      if bits & 0x7FFF > 0x7C00 {
        #expect(value.isNaN)
      } else {
        #expect(Half.bits(value) == bits)
      }
    }
    #expect(Half.float(0x7C00) == .infinity)
    #expect(Half.float(0x7BFF) == 65504)
    #expect(Half.bits(65520) == 0x7C00)
    #expect(Half.bits(65519) == 0x7BFF)
  }

  @Test func halfRoundsToTheNearestTiesToEven() {
    for bits in UInt16(0)..<0x7BFF {
      let middle = (Half.float(bits) + Half.float(bits + 1)) / 2
      #expect(Half.bits(middle.nextDown) == bits)
      #expect(Half.bits(middle.nextUp) == bits + 1)
      #expect(Half.bits(middle) == (bits & 1 == 0 ? bits : bits + 1))
    }
  }

  #if !(os(macOS) && arch(x86_64))
  @Test func halfIsTheStandardLibrarysFloat16() {
    for bits in UInt16.min...UInt16.max where bits & 0x7FFF <= 0x7C00 {
      #expect(Half.float(bits) == Float(Float16(bitPattern: bits)))
    }
  }
  #endif

  @Test func bfloat16RoundsToTheNearestTiesToEven() {
    for bits in stride(from: UInt16(0), to: 0x7F7F, by: 7) {
      let (low, high) = (BFloat16(bitPattern: bits), BFloat16(bitPattern: bits + 1))
      let middle = Float(bitPattern: UInt32(bits) << 16 | 0x8000)
      #expect(BFloat16(low.float) == low)
      #expect(BFloat16(middle.nextDown) == low)
      #expect(BFloat16(middle.nextUp) == high)
      #expect(BFloat16(middle).bitPattern == (bits & 1 == 0 ? bits : bits + 1))
    }
    #expect(BFloat16(.nan).float.isNaN)
    #expect(BFloat16(-.infinity).float == -.infinity)
    #expect(BFloat16(.greatestFiniteMagnitude).float == .infinity)
  }

  @Test func int4PacksEveryPair() {
    for low in Int4.range {
      for high in Int4.range {
        let halves = Int4.unpack(Int4.pack(low, high))
        #expect(halves.low == low && halves.high == high)
      }
    }
    #expect(Int4.pack(1, 2) == 0x21)
  }
}
